"""Measures of answers against the truth: overlaps (by pycocotools), words read, calibration of scores.

Knows nothing about scenes, tasks or models. The packages of the extra "evaluate", pycocotools and
pycocoevalcap, are imported when they are needed.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from florence.errors import MissingLibrary

Corners = Sequence[float]  # x1, y1, x2, y2
Polygon = Sequence[float]  # x1, y1, x2, y2, ...
Figures = dict[str, float]
RIGHT_OVERLAP: Final = 0.5
GROUPS: Final = 10


def evaluator(module: str) -> Any:
    """A module of the extra "evaluate"; MissingLibrary, which says what to install, without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary("measuring answers", module.partition(".")[0], "evaluate") from error


def box_overlap(a: Corners, b: Corners) -> float:
    """Intersection over union of two boxes, the second with an area; 0 for a first one without."""
    return float(evaluator("pycocotools.mask").iou([coco_box(a)], [coco_box(b)], [0])[0, 0])


def coco_box(box: Corners) -> list[float]:
    """x, y, width, height; one whose corners are the wrong way round has no extent."""
    x1, y1, x2, y2 = box
    return [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]


def area_overlap(a: Sequence[Polygon], b: Sequence[Polygon], size: tuple[int, int]) -> float:
    """Intersection over union of two areas of a picture of this width and height, pixel by pixel.

    An area is what its polygons cover together; 0 where one of the two has none.
    """
    mask = evaluator("pycocotools.mask")
    areas = [[list(polygon) for polygon in area if len(polygon) >= 6] for area in (a, b)]
    if not all(areas):
        return 0.0
    first, second = (mask.merge(mask.frPyObjects(area, size[1], size[0])) for area in areas)
    return float(mask.iou([first], [second], [0])[0, 0])


def word_accuracy(read: str, written: str) -> tuple[int, int]:
    """How many of the written words were read (in any order, each counted once), and how many there are."""
    words = written.split()
    return (Counter(read.split()) & Counter(words)).total(), len(words)


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True, slots=True)
class Judged:
    """One scored item of an answer, or a whole text, and whether it is right."""

    score: float
    right: bool


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One group of `reliability`: its size, the mean score, the share of right items."""

    count: int
    score: float
    right: float


def area_under_curve(judged: Sequence[Judged]) -> float:
    """How probable it is that a right item has a better score than a wrong one, equal ones counting half:
    the area under the ROC curve (Mann and Whitney's U). nan without right or wrong items."""
    ranked = sorted(judged, key=lambda one: one.score)
    right = sum(one.right for one in ranked)
    pairs, better, below = right * (len(ranked) - right), 0.0, 0
    for _, equal in itertools.groupby(ranked, key=lambda one: one.score):
        group = [one.right for one in equal]
        wrong = len(group) - sum(group)
        better += sum(group) * (below + wrong / 2)
        below += wrong
    return better / pairs if pairs else math.nan


def reliability(judged: Sequence[Judged]) -> list[CalibrationRow]:
    """`GROUPS` groups of equal size, lowest scores first; fewer where there are fewer items.

    Groups of equal width would say nothing about a task whose scores lie close together.
    """
    ranked = sorted(judged, key=lambda one: one.score)
    cuts = [len(ranked) * number // GROUPS for number in range(GROUPS + 1)]
    return [
        CalibrationRow(stop - start, mean([one.score for one in part]), mean([one.right for one in part]))
        for start, stop in itertools.pairwise(cuts)
        if (part := ranked[start:stop])
    ]


def expected_calibration_error(judged: Sequence[Judged]) -> float:
    """Mean distance between a group's score and its share of right items; nan of nothing."""
    rows = reliability(judged)
    return sum(row.count * abs(row.score - row.right) for row in rows) / len(judged) if rows else math.nan
