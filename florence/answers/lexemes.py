"""A generated text cut into lexemes: locations, markup, and plain text; and the stop phrases.

Knows nothing about tasks or pixels. Only the vocabulary's own tokens count: `<loc_1000>` is plain text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from florence.errors import RequestError
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

# Phrase grounding leaves these out, for they name nothing visible: the 72 of the original's list, matched
# whole and with their case.
STOP_PHRASES: Final = frozenset(
    f"{_PERSONAL} {_DEMONSTRATIVE} {_INDEFINITE} image images the a an".split()
) | frozenset(_SEVERAL_WORDS)


class LexemeKind(Enum):
    """What a lexeme is; markup is any other added token, such as `<sep>` or `<poly>`."""

    TEXT = auto()
    LOCATION = auto()
    MARKUP = auto()


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A part of the text. start: index of its first character. bin: of a location, else -1."""

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
    """The text's lexemes in order; `<s>`, `</s>` and `<pad>` are left out, as if they were not there."""
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


class Scorer:
    """Log-probabilities of the generated tokens, found by the position of their text."""

    def __init__(self, text: str, pieces: Sequence[Piece], token_logprobs: Sequence[float]) -> None:
        """Pieces or log-probabilities may be missing: then every score is None.

        Raises RequestError when the pieces are not the text's or count tokens without a log-probability.
        """
        self._logprobs = token_logprobs
        self._pieces = pieces if token_logprobs else ()
        self._tokens: dict[tuple[int, int], int] = {}  # (position in the text, length) -> index of the token
        if not self._pieces:
            return
        cursor = 0
        for piece in self._pieces:
            if not 0 <= piece.start <= piece.stop <= len(token_logprobs):
                raise RequestError(f"{piece} lies outside the {len(token_logprobs)} log-probabilities given")
            if piece.stop - piece.start == 1:
                self._tokens[cursor, len(piece.text)] = piece.start
            cursor += len(piece.text)
        if "".join(piece.text for piece in self._pieces) != text:
            raise RequestError("the pieces' texts joined must be the generated text")

    def score_locations(self, locations: Sequence[Lexeme]) -> float | None:
        """exp of the mean log-probability of some locations; None if one is spelled out in plain text."""
        indices = [self._tokens.get((location.start, len(location.text))) for location in locations]
        return None if None in indices else self._score([index for index in indices if index is not None])

    def score_text(self) -> float | None:
        """exp of the mean log-probability of all tokens but `<s>`, `</s>` and `<pad>`."""
        texts = [piece for piece in self._pieces if piece.text not in PADDING]
        return self._score([index for piece in texts for index in range(piece.start, piece.stop)])

    def _score(self, indices: Sequence[int]) -> float | None:
        if not indices:
            return None
        mean = sum(self._logprobs[index] for index in indices) / len(indices)
        # Rounding can lift a log-probability a little above 0.
        return None if math.isnan(mean) else math.exp(min(mean, 0.0))
