"""Boxes and outlines as numbers: areas, bounds, intersections.

Pixels: x to the right, y down. Knows nothing about pictures, labels or where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Corner = tuple[float, float]


def box_polygon(box: Box) -> list[float]:
    """The four corners of a box, x, y, x, y, ..."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def coco_box(box: Box) -> list[float]:
    """COCO's x, y, width, height of a box; sizes are 0 where corners are in the wrong order."""
    x1, y1, x2, y2 = box
    return [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]


def corners_of(numbers: Sequence[float]) -> list[Corner]:
    """x, y, x, y, ... as points."""
    return list(zip(numbers[0::2], numbers[1::2], strict=True))


def bounds_of(numbers: Sequence[float]) -> Box:
    """Bounding box of x, y, x, y, ...; the point (0, 0) if there are none."""
    xs, ys = numbers[0::2] or (0.0,), numbers[1::2] or (0.0,)
    return min(xs), min(ys), max(xs), max(ys)


def signed_area(corners: Sequence[Corner]) -> float:
    """The area of an outline that does not cross itself, by the shoelace formula; positive if it is clockwise
    on the screen."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*corners, *corners[:1]])) / 2


def polygon_area(numbers: Sequence[float]) -> float:
    """The area of an outline x, y, x, y, ... that does not cross itself."""
    return abs(signed_area(corners_of(numbers)))


def meet(a: Box, b: Box) -> Box:
    """The intersection of two boxes; inverted where it is empty."""
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def area(box: Box) -> float:
    """The area of a box; 0 for an inverted one."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    """Intersection over union (IoU) of two boxes; 0 where they have no common area."""
    shared = area(meet(a, b))
    return shared / (area(a) + area(b) - shared) if shared else 0.0


def hull(boxes: Sequence[Box]) -> Box:
    """The bounding box of boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def clockwise(numbers: Sequence[float]) -> list[Corner]:
    """x, y, x, y, ... as points, clockwise on the screen."""
    points = corners_of(numbers)
    return points if signed_area(points) >= 0 else points[::-1]


def common_area(a: Sequence[Corner], b: Sequence[Corner]) -> float:
    """The area of the intersection of two convex clockwise outlines, by clipping one along each edge of the
    other (Sutherland and Hodgman, 1974)."""
    left = list(a)
    for start, stop in pairwise([*b, b[0]]):
        left = _cut(left, start, stop)
    return abs(signed_area(left))


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
