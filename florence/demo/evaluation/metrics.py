"""Plain measures of one answer against the truth: overlaps of boxes and areas (pycocotools), words read.

Knows nothing about scenes, tasks or models; averages over many answers are in `boxes`, `captions` and
`calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from florence.demo.evaluation.evaluators import evaluator

Corners = Sequence[float]  # x1, y1, x2, y2
Polygon = Sequence[float]  # x1, y1, x2, y2, ...
Figures = dict[str, float]
RIGHT_OVERLAP: Final = 0.5


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
