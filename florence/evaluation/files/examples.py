"""Questions with their true answers, and the answers to evaluate.

Knows nothing about files or figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from florence.export.geometry import Box
from florence.types.results import Result

Outline = Sequence[Sequence[float]] | Mapping[str, Any]
"""Polygons, each x1, y1, x2, y2, ... in pixels; or a COCO run-length code."""

_ARTICLE = re.compile(r"(?:a|an|the) ")
_END: Final = " .,;:!?"


@dataclass(frozen=True, slots=True)
class TrueThing:
    """One thing that is in a picture.

    `label`: its class, phrase or text; "" for things without labels. `box`: x1, y1, x2, y2 in pixels.
    `outline`: the area that it covers; None where only the box is known. `crowd`: several things as one, as
    in COCO: boxes on it are neither right nor wrong.
    """

    label: str
    box: Box
    outline: Outline | None = None
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """The true answer to a question: the things, or texts each of which is right, or a JSON value."""

    things: tuple[TrueThing, ...] = ()
    texts: tuple[str, ...] = ()
    value: Any = None


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one picture.

    `picture`: its name in the ground truth file. `path`: its file. `text`: the task's text or region. `size`:
    width and height in pixels, None where the ground truth file does not have them.
    """

    picture: str
    path: Path
    truth: Truth
    text: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answer. `size`: width and height of the picture, in pixels."""

    example: Example
    result: Result
    size: tuple[int, int]


def same_words(text: str) -> str:
    """A label or phrase normalised for comparison: without case, extra white space, a leading article and a
    final full stop."""
    plain = " ".join(text.casefold().split()).strip(_END)
    return _ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else plain


def picture_numbers(rows: Sequence[Answered]) -> list[int]:
    """The index of each row's picture, counted from 0 in order of appearance."""
    names = {name: number for number, name in enumerate(dict.fromkeys(row.example.picture for row in rows))}
    return [names[row.example.picture] for row in rows]
