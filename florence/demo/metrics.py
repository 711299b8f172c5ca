"""Plain measures of answers against truth: overlaps, average precision, matches.

Own formulas, no evaluator's package. Average precision is the area under the precision-recall curve with
precision made monotone (all-point interpolation), a box being right when its overlap is 0.5 or more and no
better-scored box has taken the same truth; the mean goes over the labels that occur in the truth.
Knows nothing about scenes, tasks or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

Box = Sequence[float]  # x1, y1, x2, y2
RIGHT_OVERLAP: Final = 0.5
_FINE: Final = 256  # polygons are compared on a grid of this many cells a side


@dataclass(frozen=True, slots=True)
class Found:
    """A box of one picture with its label; `score` is None in the truth."""

    picture: int
    label: str
    box: Box
    score: float | None = None


def box_overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 for a box without area."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def polygon_overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two polygons (x1, y1, x2, y2, ...), on a grid that spans both."""
    if len(a) < 6 or len(b) < 6:
        return 0.0
    xs, ys = [*a[::2], *b[::2]], [*a[1::2], *b[1::2]]
    corner = (min(xs), min(ys))
    scale = _FINE / max(max(xs) - corner[0], max(ys) - corner[1], 1e-9)
    first, second = (_mask(polygon, corner, scale) for polygon in (a, b))
    either = int((first | second).sum())
    return float((first & second).sum() / either) if either else 0.0


def _mask(
    polygon: Sequence[float], corner: tuple[float, float], scale: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    image = Image.new("1", (_FINE + 1, _FINE + 1))
    points = [
        ((x - corner[0]) * scale, (y - corner[1]) * scale)
        for x, y in zip(polygon[::2], polygon[1::2], strict=False)
    ]
    ImageDraw.Draw(image).polygon(points, fill=1)
    return np.asarray(image)


def matches(found: Sequence[Found], truth: Sequence[Found]) -> list[bool]:
    """For each found box, best score first, whether it is right.

    Right: the best-fitting truth of its picture and label that is not taken yet overlaps enough.
    """
    taken: set[int] = set()
    right = []
    for one in _by_score(found):
        overlaps = [
            (box_overlap(one.box, other.box), index)
            for index, other in enumerate(truth)
            if index not in taken and (other.picture, other.label) == (one.picture, one.label)
        ]
        best, index = max(overlaps, default=(0.0, -1))
        right.append(best >= RIGHT_OVERLAP)
        if right[-1]:
            taken.add(index)
    return right


def average_precision(found: Sequence[Found], truth: Sequence[Found]) -> float:
    """Average precision at overlap 0.5 of boxes of any label taken together; nan without truth."""
    if not truth:
        return math.nan
    right = np.array(matches(found, truth), dtype=np.float64)
    if not len(right):
        return 0.0
    hits = np.cumsum(right)
    precision = np.maximum.accumulate((hits / np.arange(1, len(right) + 1))[::-1])[::-1]
    return float((precision * right).sum() / len(truth))


def mean_average_precision(found: Sequence[Found], truth: Sequence[Found]) -> float:
    """Mean over the truth's labels of their average precision; nan without truth."""
    labels = sorted({one.label for one in truth})
    each = [
        average_precision(
            [one for one in found if one.label == label], [one for one in truth if one.label == label]
        )
        for label in labels
    ]
    return mean(each)


def word_accuracy(read: str, written: str) -> tuple[int, int]:
    """How many of the written words were read (in any order, each counted once), and how many there are."""
    left = read.split()
    hits = 0
    for word in written.split():
        if word in left:
            left.remove(word)
            hits += 1
    return hits, len(written.split())


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else math.nan


def _by_score(found: Sequence[Found]) -> list[Found]:
    return sorted(found, key=lambda one: -(one.score if one.score is not None else 0.0))
