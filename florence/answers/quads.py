"""Intersection areas of convex outlines. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Corner = tuple[float, float]


def points_of(numbers: Sequence[float]) -> list[Corner]:
    """x, y, x, y, ... as points, clockwise on the screen."""
    points = list(zip(numbers[0::2], numbers[1::2], strict=True))
    return points if _signed_area(points) >= 0 else points[::-1]


def area_of(points: Sequence[Corner]) -> float:
    """The area inside an outline, in square pixels."""
    return abs(_signed_area(points))


def common_area(a: Sequence[Corner], b: Sequence[Corner]) -> float:
    """The area of the intersection of two convex clockwise outlines, by clipping one along each edge of the
    other (Sutherland and Hodgman, 1974)."""
    left = list(a)
    for start, stop in pairwise([*b, b[0]]):
        left = _cut(left, start, stop)
    return area_of(left)


def _cut(points: Sequence[Corner], start: Corner, stop: Corner) -> list[Corner]:
    """The part of an outline on the inner side of an edge."""
    kept: list[Corner] = []
    sides = [(stop[0] - start[0]) * (y - start[1]) - (stop[1] - start[1]) * (x - start[0]) for x, y in points]
    for index, ((x, y), side) in enumerate(zip(points, sides, strict=True)):
        before, other = points[index - 1], sides[index - 1]
        if (side >= 0) != (other >= 0):
            share = other / (other - side)
            kept.append((before[0] + (x - before[0]) * share, before[1] + (y - before[1]) * share))
        if side >= 0:
            kept.append((x, y))
    return kept


def _signed_area(points: Sequence[Corner]) -> float:
    """Positive for an outline that is clockwise on the screen."""
    turns = (a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*points, *points[:1]]))
    return sum(turns) / 2
