"""Boxes against truth by COCO's own evaluation, pycocotools' COCOeval: average precision, recall.

Average precision is COCO's: precision at 101 levels of recall, the mean over the labels that occur in the
truth, at overlaps (IoU) of 0.5 to 0.95, at 0.5 and at 0.75; 100 boxes a picture at most. Knows nothing about
scenes, tasks or models.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from florence.demo.evaluation.metrics import Corners, Figures, coco_box, evaluator

PictureId = int | tuple[int, str]


@dataclass(frozen=True, slots=True)
class Found:
    """A box of one picture with its label; `score` is None in the truth."""

    picture: PictureId
    label: str
    box: Corners
    score: float | None = None


def evaluate_boxes(found: Sequence[Found], truth: Sequence[Found]) -> tuple[Figures, list[bool]]:
    """COCO's figures, and of each found box whether it is right: the best-fitting free truth of its picture
    and label overlaps by 0.5 or more, boxes with a better score choosing first.

    recall@50 and precision@50 are shares of all boxes, AR@50:95 is COCO's average recall, a mean over labels.
    nan where there is nothing to measure. Raises MissingLibrary without pycocotools.
    """
    sets = [evaluator("pycocotools.coco").COCO() for _ in range(2)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        for coco, data_set in zip(sets, _as_coco(found, truth), strict=True):
            coco.dataset = data_set
            coco.createIndex()
        evaluation = evaluator("pycocotools.cocoeval").COCOeval(*sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    right = _right(evaluation, len(found))
    stats = [float(value) if value >= 0 else math.nan for value in evaluation.stats]
    figures = {"mAP@50:95": stats[0], "mAP@50": stats[1], "mAP@75": stats[2], "AR@50:95": stats[8]}
    figures["recall@50"] = sum(right) / len(truth) if truth else math.nan
    figures["precision@50"] = sum(right) / len(found) if found else math.nan
    return figures, right


def _as_coco(found: Sequence[Found], truth: Sequence[Found]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The truth and the found boxes as COCO data sets; ids count from 1, for 0 means "none" to COCOeval."""
    everything = [*truth, *found]
    pictures = {key: number for number, key in enumerate(dict.fromkeys(one.picture for one in everything), 1)}
    labels = {key: number for number, key in enumerate(dict.fromkeys(one.label for one in everything), 1)}
    frame = {
        "images": [{"id": number} for number in pictures.values()],
        "categories": [{"id": number} for number in labels.values()],
    }

    def annotations(boxes: Sequence[Found]) -> list[dict[str, Any]]:
        return [
            {
                "id": number,
                "image_id": pictures[one.picture],
                "category_id": labels[one.label],
                "bbox": (bbox := coco_box(one.box)),
                "area": bbox[2] * bbox[3],
                "iscrowd": 0,
                "score": one.score or 0.0,
            }
            for number, one in enumerate(boxes, 1)
        ]

    return {**frame, "annotations": annotations(truth)}, {**frame, "annotations": annotations(found)}


def _right(evaluation: Any, count: int) -> list[bool]:
    """By the matches at the lowest overlap, 0.5, among boxes of every area."""
    right = [False] * count
    for row in evaluation.evalImgs:
        if row is not None and row["aRng"] == evaluation.params.areaRng[0]:
            for number, matched in zip(row["dtIds"], row["dtMatches"][0], strict=True):
                right[number - 1] = bool(matched)
    return right
