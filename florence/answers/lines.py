"""Pieces of text in reading order: line by line, from left to right.

Two pieces stand in one line where they overlap by half of the lower one's height. Columns are not told from
words that stand far apart. Knows boxes and texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from florence.types.results import Box

_SHARED: Final = 0.5


def lines_of(pieces: Sequence[Box]) -> list[list[int]]:
    """Indices of the pieces, by line. pieces: left, top, right, bottom."""
    lines: list[list[int]] = []
    for index in sorted(range(len(pieces)), key=lambda each: (_middle(pieces[each]), pieces[each])):
        if lines and _beside(pieces[index], [pieces[each] for each in lines[-1]]):
            lines[-1].append(index)
        else:
            lines.append([index])
    return [sorted(line, key=lambda each: (pieces[each], each)) for line in lines]


def _middle(piece: Box) -> float:
    return (piece[1] + piece[3]) / 2


def _beside(piece: Box, line: Sequence[Box]) -> bool:
    """Whether a piece stands in a line: beside that one of its pieces which is the nearest."""
    nearest = min(line, key=lambda each: (max(each[0] - piece[2], piece[0] - each[2]), each))
    shared = min(piece[3], nearest[3]) - max(piece[1], nearest[1])
    apart = piece[0] >= nearest[2] or nearest[0] >= piece[2] or shared > 0
    return apart and shared >= _SHARED * min(piece[3] - piece[1], nearest[3] - nearest[1])
