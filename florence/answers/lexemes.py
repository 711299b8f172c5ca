"""Cuts a generated text into lexemes: locations, markup and plain text. Also has the stop phrases.

Knows nothing about tasks or pixels. Only the vocabulary's own tokens count: `<loc_1000>` is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from florence.types.regions import LOCATION_PATTERN

PADDING: Final = ("<s>", "</s>", "<pad>")
_PAIRED = "poly od ocr cap ncap dcap grounding seg region_cap region_to_desciption proposal"
_MARKUP = ["<sep>", "<and>", *(tag for name in _PAIRED.split() for tag in (f"<{name}>", f"</{name}>"))]
_TOKEN = re.compile("|".join([f"(?P<location>{LOCATION_PATTERN})", *PADDING, *_MARKUP]))

_PERSONAL = (
    "I me mine myself you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves"
)
_DEMONSTRATIVE = "this that these those who whom whose which what"
_INDEFINITE = (
    "all another any anybody anyone anything each everybody everyone everything few many nobody none one "
    "oneself several some somebody someone something lots"
)
_SEVERAL_WORDS = ("each other", "one another", "the image", "a group", "a set", "other objects")

# Phrase grounding leaves these out, since they name nothing visible: the 72 of the original's list, matched
# whole and case-sensitively.
STOP_PHRASES: Final = frozenset(
    f"{_PERSONAL} {_DEMONSTRATIVE} {_INDEFINITE} image images the a an".split()
) | frozenset(_SEVERAL_WORDS)


class LexemeKind(Enum):
    """The kinds of lexemes; markup is any other added token, such as `<sep>` or `<poly>`."""

    TEXT = auto()
    LOCATION = auto()
    MARKUP = auto()


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A part of the text. `start`: index of its first character. `bin`: bin of a location, -1 for others."""

    kind: LexemeKind
    text: str
    start: int
    bin: int = -1


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the generated text and the tokens it came from, `start:stop` among all of them.

    Each special or added token is a piece of its own; the pieces' texts joined are the generated text.
    """

    text: str
    start: int
    stop: int


def read_lexemes(text: str) -> Iterator[Lexeme]:
    """The text's lexemes in order, without `<s>`, `</s>` and `<pad>`."""
    cursor = 0
    for match in _TOKEN.finditer(text):
        if match.start() > cursor:
            yield Lexeme(LexemeKind.TEXT, text[cursor : match.start()], cursor)
        cursor = match.end()
        if match["location"]:
            yield Lexeme(LexemeKind.LOCATION, match.group(), match.start(), int(match.group(2)))
        elif match.group() not in PADDING:
            yield Lexeme(LexemeKind.MARKUP, match.group(), match.start())
    if cursor < len(text):
        yield Lexeme(LexemeKind.TEXT, text[cursor:], cursor)
