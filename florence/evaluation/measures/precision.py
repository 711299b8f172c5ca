"""Average precision and recall of boxes or masks, by COCO's own evaluation (pycocotools' COCOeval).

Average precision is COCO's: precision at 101 levels of recall, averaged over the labels that occur in the
ground truth, at IoU 0.5 to 0.95, 0.5 and 0.75; at most 100 things for each picture. Knows nothing about tasks
or models.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence.evaluation.libraries import evaluator
from florence.evaluation.measures.figures import Figures, Repeats
from florence.export.geometry import Box, coco_box

PictureId = tuple[int, str]
"""A picture's index, and the question about it if each question is evaluated on its own."""


@dataclass(frozen=True, slots=True)
class PlacedThing:
    """A thing in one picture with its label; `score` is None in the ground truth. `crowd`: COCO's iscrowd.
    `mask`: a run-length code, if masks are compared."""

    picture: PictureId
    label: str
    box: Box
    score: float | None = None
    crowd: bool = False
    mask: Any = None


class AveragePrecision:
    """A `Metric` of found things against true ones.

    `masks`: compare masks, not boxes. `matches`: for each found thing the index of its matched true thing: in
    order of score, the best unmatched one of its picture and label with an IoU of 0.5 or more. `right`:
    whether there is a match; None if it is a crowd. `prefix`: of the figures' names. Raises `MissingLibrary`
    without pycocotools.
    """

    def __init__(
        self,
        found: Sequence[PlacedThing],
        truth: Sequence[PlacedThing],
        *,
        prefix: str = "",
        masks: bool = False,
    ) -> None:
        self._found, self._truth, self._prefix = found, truth, prefix
        everything = [*truth, *found]
        self._pictures = list(dict.fromkeys(one.picture for one in everything))
        sets = [evaluator("pycocotools.coco").COCO() for _ in range(2)]
        with _silence():
            for coco, data_set in zip(sets, self._as_coco(), strict=True):
                coco.dataset = data_set
                coco.createIndex()
            self._evaluation = evaluator("pycocotools.cocoeval").COCOeval(*sets, "segm" if masks else "bbox")
            params = self._evaluation.params
            # Skip what is not used but takes time: areas other than "all", fewer things than 100.
            params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
            params.maxDets = params.maxDets[-1:]
            self._evaluation.evaluate()
        self.matches = self._matches()
        self.right = [
            None if number is not None and truth[number].crowd else number is not None
            for number in self.matches
        ]

    def figures(self, repeats: Repeats) -> Figures:
        """recall@50 and precision@50 are shares of all things; AR@50:95 is COCO's average recall, a mean over
        labels."""
        evaluation = self._repeated(repeats)
        with _silence():
            evaluation.accumulate()
        precision, recall = (evaluation.eval[name] for name in ("precision", "recall"))  # [overlaps, ...]
        parts = {"mAP@50:95": precision, "mAP@50": precision[0], "mAP@75": precision[5], "AR@50:95": recall}
        figures = {name: _mean(values) for name, values in parts.items()}
        hits = self._sum(repeats, self._found, self.right)
        true = self._sum(repeats, self._truth, [not one.crowd for one in self._truth])
        counted = self._sum(repeats, self._found, [ok is not None for ok in self.right])
        figures["recall@50"] = hits / true if true else math.nan
        figures["precision@50"] = hits / counted if counted else math.nan
        return {self._prefix + name: value for name, value in figures.items()}

    def _repeated(self, repeats: Repeats) -> Any:
        """COCOeval's results for each picture, repeated as often as it counts: [categories, pictures]."""
        evaluation, count = copy.copy(self._evaluation), len(self._pictures)
        order = np.repeat(np.arange(count), [repeats[number] for number, _ in self._pictures]).tolist()
        results = evaluation.evalImgs
        evaluation.evalImgs = [
            results[start + number] for start in range(0, len(results), count or 1) for number in order
        ]
        params = copy.copy(evaluation.params)
        params.imgIds = list(range(len(order)))
        evaluation.params = evaluation._paramsEval = params
        return evaluation

    def _sum(self, repeats: Repeats, things: Sequence[PlacedThing], counts: Sequence[bool | None]) -> int:
        return sum(int(repeats[one.picture[0]]) for one, count in zip(things, counts, strict=True) if count)

    def _as_coco(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """True and found things as COCO data sets; ids start at 1, since 0 means "none" to COCOeval."""
        labels = dict.fromkeys(one.label for one in [*self._truth, *self._found])
        categories = {label: number for number, label in enumerate(labels, 1)}
        pictures = {key: number for number, key in enumerate(self._pictures, 1)}
        frame = {
            "images": [
                {"id": number, "height": 0, "width": 0} for number in pictures.values()
            ],  # masks need the size
            "categories": [{"id": number} for number in categories.values()],
        }

        def annotations(things: Sequence[PlacedThing]) -> list[dict[str, Any]]:
            return [
                {
                    "id": number,
                    "image_id": pictures[one.picture],
                    "category_id": categories[one.label],
                    "bbox": (bbox := coco_box(one.box)),
                    "area": bbox[2] * bbox[3],
                    "segmentation": one.mask,
                    "iscrowd": int(one.crowd),
                    "score": one.score or 0.0,
                }
                for number, one in enumerate(things, 1)
            ]

        return (
            {**frame, "annotations": annotations(self._truth)},
            {**frame, "annotations": annotations(self._found)},
        )

    def _matches(self) -> list[int | None]:
        """The matches at an IoU of 0.5; things beyond the 100 best of a picture have none."""
        matches: list[int | None] = [None] * len(self._found)
        for row in self._evaluation.evalImgs:
            if row is not None:
                for number, matched in zip(row["dtIds"], row["dtMatches"][0], strict=True):
                    matches[number - 1] = int(matched) - 1 if matched else None
        return matches


def _mean(values: NDArray[Any]) -> float:
    """The mean without -1, which marks labels without ground truth, as in COCOeval's summary."""
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """Suppress pycocotools' prints."""
    return contextlib.redirect_stdout(io.StringIO())
