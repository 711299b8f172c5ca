"""A typed result in the form of the original's JSON, for answers without a single generated text: those of
tiles.

The keys and their order are the original's (see `original`). Labels and pixels are those of the typed result,
without the parser's quirks.
"""

from __future__ import annotations

from typing import Any

from florence.types.results import Detections, OcrRegions, Result, Segmentation, Wording
from florence.types.tasks import Kind, Task


def original_form(task: Task, result: Result) -> Any:
    """The value that the original's JSON has for the task's token."""
    if isinstance(result, Wording):
        return result.text
    if isinstance(result, OcrRegions):
        return {
            "quad_boxes": [list(each.quad) for each in result.regions],
            "labels": [each.text for each in result.regions],
        }
    boxes = result.detections if isinstance(result, Detections) else []
    things = result.instances if isinstance(result, Segmentation) else []
    found = {"bboxes": [list(each.box) for each in boxes], "labels": [each.label for each in boxes]}
    outlined = {
        "polygons": [each.polygons for each in things],
        "labels": [each.label for each in things],
    }
    if task.kind is Kind.BOXES_OR_POLYGONS:
        return {
            "bboxes": found["bboxes"],
            "bboxes_labels": found["labels"],
            "polygons": outlined["polygons"],
            "polygons_labels": outlined["labels"],
        }
    return found if isinstance(result, Detections) else outlined
