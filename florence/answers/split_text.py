"""Joins a line of text from parts, each of which was read by one tile up to its border.

Where two parts overlap, both contain the same letters; those at a border may be wrong, since it cuts them.
Knows texts and lengths only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import reduce
from typing import Final

_SPARE: Final = 3  # error of the estimated overlap, in letters
_GAP: Final = 1.0  # gap between two parts that means a space, in letters


@dataclass(frozen=True, slots=True)
class LinePart:
    """A part of a line. `start`, `stop`: positions along the line, in pixels; `score`: of its text."""

    text: str
    start: float
    stop: float
    score: float = 0.0

    @property
    def letter(self) -> float:
        """Mean width of a letter, in pixels."""
        return (self.stop - self.start) / max(1, len(self.text))


def join_parts(parts: Sequence[LinePart]) -> str:
    """The text of all parts, each letter once. `parts`: ordered by `start`."""
    return reduce(_join, parts).text


def _join(left: LinePart, right: LinePart) -> LinePart:
    shared = left.stop - right.start
    stop = max(left.stop, right.stop)
    if shared <= 0:
        space = " " if -shared >= _GAP * left.letter else ""
        return LinePart(left.text + space + right.text, left.start, stop, min(left.score, right.score))
    ends, begins = (round(shared / part.letter) if part.letter else 0 for part in (left, right))
    tail = max(0, len(left.text) - ends - _SPARE)
    head = begins + _SPARE
    matcher = SequenceMatcher(None, left.text, right.text, autojunk=False)
    match = matcher.find_longest_match(tail, len(left.text), 0, min(head, len(right.text)))
    if match.size * 2 >= min(ends, begins):
        text = left.text[: match.a + match.size] + right.text[match.b + match.size :]
    elif 2 * min(ends, begins) >= max(len(left.text), len(right.text)):  # most of one part is wrong
        text = max(left, right, key=lambda part: part.score).text
    else:  # no common letters: take each part's letters up to the middle
        text = left.text[: len(left.text) - ends // 2] + right.text[begins - begins // 2 :]
    return LinePart(text, left.start, stop, min(left.score, right.score))
