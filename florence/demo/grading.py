"""Grades answers of the fifteen tasks: which figures a task has, and what they come to.

Knows nothing about models: it is given questions, scenes and typed results. All figures are between 0 and 1
and higher is better, but for `invented` (share of absent things for which boxes were answered).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from florence.demo.metrics import (
    RIGHT_OVERLAP,
    Found,
    average_precision,
    box_overlap,
    matches,
    mean,
    mean_average_precision,
    polygon_overlap,
    word_accuracy,
)  # fmt: skip
from florence.demo.scenes import Scene
from florence.demo.truths import Question, brief, full
from florence.schemas import Detections, OcrRegions, Result, Segmentation, Text


@dataclass(frozen=True)
class Graded:
    """One question with what was answered."""

    scene: Scene
    question: Question
    result: Result


Figures = dict[str, float]


def grade(task: str, answers: Sequence[Graded]) -> Figures:
    """The figures of a task over its answers, nan where nothing was to measure. KeyError for no task."""
    return _GRADES[task](answers)


def _text(answers: Sequence[Graded]) -> Figures:
    return {"exact": mean([_said(one) == one.question.answer for one in answers])}


def _ocr(answers: Sequence[Graded]) -> Figures:
    counts = [word_accuracy(_said(one), one.question.answer) for one in answers]
    hits, words = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return _text(answers) | {"words": hits / words if words else mean([])}


def _said(one: Graded) -> str:
    return one.result.text if isinstance(one.result, Text) else ""


def _labelled(
    label: Callable[[Graded, int], str],
) -> Callable[[Sequence[Graded]], tuple[list[Found], list[Found]]]:
    """Found boxes and true ones; `label` names the thing of that index."""

    def pairs(answers: Sequence[Graded]) -> tuple[list[Found], list[Found]]:
        found, truth = [], []
        for picture, one in enumerate(answers):
            found += [Found(picture, each.label, each.box, each.score) for each in _detections(one)]
            truth += [
                Found(picture, label(one, index), one.scene.things[index].box)
                for index in one.question.things
            ]
        return found, truth

    return pairs


def _detections(one: Graded) -> list[Found]:
    if not isinstance(one.result, Detections):
        return []
    return [Found(0, each.label, each.box, each.score) for each in one.result.detections]


_shape_pairs = _labelled(lambda one, index: one.scene.things[index].shape)
_full_pairs = _labelled(lambda one, index: full(one.scene.things[index]))
_bare_pairs = _labelled(lambda one, index: "")
_asked_pairs = _labelled(lambda one, index: one.question.text or "")


def _detection(answers: Sequence[Graded]) -> Figures:
    found, truth = _shape_pairs(answers)
    return {"mAP@50": mean_average_precision(found, truth)} | _precision_recall(found, truth)


def _dense(answers: Sequence[Graded]) -> Figures:
    found, truth = _full_pairs(answers)
    return {"mAP@50": mean_average_precision(found, truth)} | _precision_recall(found, truth)


def _proposals(answers: Sequence[Graded]) -> Figures:
    return _precision_recall(*_bare_pairs(answers))


def _precision_recall(found: Sequence[Found], truth: Sequence[Found]) -> Figures:
    hits = sum(matches(found, truth))
    return {
        "recall@50": hits / len(truth) if truth else mean([]),
        "precision@50": hits / len(found) if found else mean([]),
    }


def _grounding(answers: Sequence[Graded]) -> Figures:
    """Of each phrase, whether a box of that very phrase lies right."""
    right = []
    for one in answers:
        boxes = _detections(one)
        for index in one.question.things:
            thing = one.scene.things[index]
            own = [each for each in boxes if each.label in (brief(thing), full(thing))]
            right.append(any(box_overlap(each.box, thing.box) >= RIGHT_OVERLAP for each in own[:1]))
    return {"right@50": mean(right)}


def _open_vocabulary(answers: Sequence[Graded]) -> Figures:
    present = [one for one in answers if one.question.things]
    absent = [one for one in answers if not one.question.things]
    return {
        "AP@50": average_precision(*_asked_pairs(present)),
        "invented": mean([bool(_detections(one)) for one in absent]),
    }


def _segmentation(answers: Sequence[Graded]) -> Figures:
    overlaps = []
    for one in answers:
        instances = one.result.instances if isinstance(one.result, Segmentation) else []
        polygon = max((each for instance in instances for each in instance.polygons), key=len, default=[])
        outline = one.scene.things[one.question.things[0]].outline
        overlaps.append(polygon_overlap(polygon, outline.ravel().tolist()))
    return {"mIoU": mean(overlaps), "right@50": mean([overlap >= RIGHT_OVERLAP for overlap in overlaps])}


def _ocr_regions(answers: Sequence[Graded]) -> Figures:
    """Of each printed word, whether it was read with a quadrilateral that lies right."""
    right = []
    for one in answers:
        regions = one.result.regions if isinstance(one.result, OcrRegions) else []
        for index in one.question.things:
            thing = one.scene.things[index]
            quad = thing.outline.ravel().tolist()
            right.append(
                any(r.text == thing.text and polygon_overlap(r.quad, quad) >= RIGHT_OVERLAP for r in regions)
            )
    return {"words@50": mean(right)}


_GRADES: Final[Mapping[str, Callable[[Sequence[Graded]], Figures]]] = MappingProxyType(
    {
        "<CAPTION>": _text,
        "<DETAILED_CAPTION>": _text,
        "<MORE_DETAILED_CAPTION>": _text,
        "<CAPTION_TO_PHRASE_GROUNDING>": _grounding,
        "<OD>": _detection,
        "<DENSE_REGION_CAPTION>": _dense,
        "<REGION_PROPOSAL>": _proposals,
        "<OCR>": _ocr,
        "<OCR_WITH_REGION>": _ocr_regions,
        "<REFERRING_EXPRESSION_SEGMENTATION>": _segmentation,
        "<REGION_TO_SEGMENTATION>": _segmentation,
        "<OPEN_VOCABULARY_DETECTION>": _open_vocabulary,
        "<REGION_TO_CATEGORY>": _text,
        "<REGION_TO_DESCRIPTION>": _text,
        "<REGION_TO_OCR>": _ocr,
    }
)
