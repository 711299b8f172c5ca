"""Puts pieces of text into reading order: columns from left to right, line by line in each.

A recursive XY-cut (Nagy and Seth, Hierarchical Representation of Optically Scanned Documents, 1984) on pieces
that are first rotated upright together. White gutters separate columns. A piece that crosses a gutter, such
as a title, ends the columns above it and begins those below. Short lines that are side by side across a
gutter are rows of a table, and are read across. Knows quads; knows nothing about texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from florence.export.geometry import Box, bounds_of, corners_of, hull
from florence.types.results import Quad

_SHARED: Final = 0.5
"""Two pieces of one line overlap vertically by at least this share of the lower one's height."""
_GUTTER: Final = 0.7
"""Smallest width of a gutter, in line heights: words of one line are closer together than columns."""
_PROSE: Final = 8.0
"""Lines at least this wide, in line heights, are running text; shorter ones may be table cells."""
_BESIDE: Final = 0.8
"""In a table, at least this share of the lines on one side of a gutter have a line beside them."""
_CORE: Final = 0.2
"""Share of a piece's height at its top, and at its bottom, that may overlap with tightly set neighbouring
lines."""
_MAX_SKEW: Final = math.radians(30)
"""A page that is rotated by more than this is not just a skewed scan."""
_MAX_DEPTH: Final = 50
"""Deepest nesting of cuts; no printed page needs as many."""
Span = tuple[float, float]
"""Left and right, in pixels."""


def lines_of(quads: Sequence[Quad]) -> list[list[int]]:
    """Indices of the pieces in reading order, by line."""
    page = _Page(_upright(quads))
    return page.ordered(list(range(len(quads)))) if quads else []


def _upright(quads: Sequence[Quad]) -> list[Box]:
    """Bounding boxes of the pieces after rotating all by the prevailing angle of their upper edges."""
    edges = [(quad[2] - quad[0], quad[3] - quad[1]) for quad in quads]
    angles = [math.atan2(down, across) for across, down in edges if abs(down) < across]
    angle = median(angles) if angles else 0.0
    angle = angle if abs(angle) <= _MAX_SKEW else 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    boxes = list[Box]()
    for quad in quads:
        turned = [(x * cos + y * sin, y * cos - x * sin) for x, y in corners_of(quad)]
        boxes.append(bounds_of([number for corner in turned for number in corner]))
    return boxes


class _Page:
    """Upright boxes, and methods that order lists of their indices."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        self._boxes = boxes

    def ordered(self, pieces: Sequence[int], depth: int = 0) -> list[list[int]]:
        """The lines of these pieces in reading order: cut along gutters, and above and below pieces that
        cross them."""
        for cut in (self._columns, self._runs) if depth < _MAX_DEPTH else ():
            parts = cut(pieces)
            if len(parts) > 1:
                return [line for part in parts for line in self.ordered(part, depth + 1)]
        return self._lines(pieces)

    def _columns(self, pieces: Sequence[int]) -> list[list[int]]:
        """The pieces by column; columns of a table stay together."""
        spans = self._spans(pieces)
        parts = [[each for each in pieces if left <= self._boxes[each][0] <= right] for left, right in spans]
        joined, row, before = list[list[int]](), list[Box](), list[Box]()  # `row`: lines that are read across
        for part in parts:
            lines = [hull([self._boxes[each] for each in line]) for line in self._lines(part)]
            if not joined or _are_columns(before, row, lines):
                joined.append(part)
                row = list(lines)
            else:
                joined[-1] += part
                row += lines
            before = lines
        return joined

    def _runs(self, pieces: Sequence[int]) -> list[list[int]]:
        """The pieces from top to bottom, cut where columns begin or end: all rows of a run share a gutter, or
        none has one."""
        runs, spans = list[list[int]](), list[Span]()  # `spans`: those of the last run
        gutter = self._gutter(pieces)
        for row in self._rows(pieces):
            own = self._spans(row)
            together = _merged([*spans, *own], gutter)
            if runs and (len(together) > 1 or len(spans) == len(own) == 1):
                runs[-1] += row
                spans = together
            else:
                runs.append(row)
                spans = own
        return runs

    def _rows(self, pieces: Sequence[int]) -> list[list[int]]:
        """The pieces in rows separated by horizontal white bands, from top to bottom."""
        cores = {each: self._core(each) for each in pieces}
        rows, low = list[list[int]](), -math.inf
        for each in sorted(pieces, key=lambda each: (cores[each], each)):
            if cores[each][0] >= low:
                rows.append([])
            rows[-1].append(each)
            low = max(low, cores[each][1])
        return rows

    def _spans(self, pieces: Sequence[int]) -> list[Span]:
        """The span of each column, between gutters."""
        return _merged([self._boxes[each][0::2] for each in pieces], self._gutter(pieces))

    def _gutter(self, pieces: Sequence[int]) -> float:
        """The smallest width of a gutter, in pixels."""
        return _GUTTER * median(self._boxes[each][3] - self._boxes[each][1] for each in pieces)

    def _lines(self, pieces: Sequence[int]) -> list[list[int]]:
        """The pieces of one column by line, each line from left to right."""
        lines = list[list[int]]()
        for each in sorted(pieces, key=lambda each: (sum(self._boxes[each][1::2]), self._boxes[each], each)):
            if lines and self._in_line(each, lines[-1]):
                lines[-1].append(each)
            else:
                lines.append([each])
        return [sorted(line, key=lambda each: (self._boxes[each], each)) for line in lines]

    def _in_line(self, piece: int, line: Sequence[int]) -> bool:
        """Whether a piece belongs to a line: it is beside the line's nearest piece."""
        box = self._boxes[piece]
        others = (self._boxes[each] for each in line)
        return _shared(box, min(others, key=lambda other: (max(other[0] - box[2], box[0] - other[2]), other)))

    def _core(self, piece: int) -> tuple[float, float]:
        """Top and bottom of the part that does not overlap with other lines."""
        _, top, _, bottom = self._boxes[piece]
        return top + _CORE * (bottom - top), bottom - _CORE * (bottom - top)


def _merged(spans: Iterable[Span], gutter: float) -> list[Span]:
    """Spans merged where they are at most a gutter apart."""
    merged = list[Span]()
    for left, right in sorted(spans):
        if merged and left - merged[-1][1] <= gutter:
            merged[-1] = merged[-1][0], max(merged[-1][1], right)
        else:
            merged.append((left, right))
    return merged


def _are_columns(left: Sequence[Box], row: Sequence[Box], right: Sequence[Box]) -> bool:
    """Whether the lines right of a gutter form a column, read after everything on its left. `left`: the lines
    of the part next to them; `row`: those of all parts that are read across with it."""
    (_, top, _, low), (_, other_top, _, other_low) = hull(row), hull(right)
    if min(low, other_low) - max(top, other_top) < _SHARED * min(low - top, other_low - other_top):
        return False  # they are above each other
    fewer, more = sorted((row, right), key=len)
    if len(more) > 1 and _is_prose(left) and _is_prose(right):
        return True
    beside = sum(any(_shared(one, other) for other in more) for one in fewer)
    return len(fewer) > 1 and beside < _BESIDE * len(fewer)


def _is_prose(lines: Sequence[Box]) -> bool:
    """Whether most lines are wide enough for running text."""
    return median((right - left) / max(bottom - top, 1e-9) for left, top, right, bottom in lines) >= _PROSE


def _shared(a: Box, b: Box) -> bool:
    """Whether two boxes are in one line."""
    return min(a[3], b[3]) - max(a[1], b[1]) >= _SHARED * min(a[3] - a[1], b[3] - b[1])
