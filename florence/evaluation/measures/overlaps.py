"""Overlaps of boxes and areas, by pycocotools' masks. Knows nothing about answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from florence.evaluation.files.examples import Outline
from florence.evaluation.libraries import evaluator
from florence.export.geometry import Box, coco_box

RIGHT_OVERLAP: Final = 0.5


def box_overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; the second must have an area; 0 if the first has none."""
    return float(evaluator("pycocotools.mask").iou([coco_box(a)], [coco_box(b)], [0])[0, 0])


def area_overlap(a: Outline, b: Outline, size: tuple[int, int]) -> float:
    """Intersection over union of two areas of a picture of this width and height, pixel by pixel.

    An area is the union of its polygons; the result is 0 if one of the areas is empty.
    """
    shared, together = areas(a, b, size)
    return shared / together if shared else 0.0


def areas(a: Outline, b: Outline, size: tuple[int, int]) -> tuple[float, float]:
    """Pixels of the intersection and of the union of two areas."""
    mask, both = evaluator("pycocotools.mask"), [mask_of(area, size) for area in (a, b)]
    return float(mask.area(mask.merge(both, True))), float(mask.area(mask.merge(both)))


def mask_of(outline: Outline, size: tuple[int, int]) -> Any:
    """The area as pycocotools' run-length code."""
    mask, (width, height) = evaluator("pycocotools.mask"), size
    if isinstance(outline, Mapping):  # a run-length code: lists in COCO's files, text if compressed
        code = dict(outline)
        return mask.frPyObjects(code, height, width) if isinstance(code["counts"], list) else code
    polygons = [list(polygon) for polygon in outline if len(polygon) >= 6]
    if not polygons:
        return mask.frPyObjects({"counts": [height * width], "size": [height, width]}, height, width)
    return mask.merge(mask.frPyObjects(polygons, height, width))
