"""Grades answers of the fifteen tasks: which figures a task has, and what they come to.

Knows nothing about models: it is given questions, scenes and typed results. All figures are between 0 and 1
and higher is better, but for `CIDEr` (0 to 10), `invented` (share of absent things for which boxes were
answered) and `ECE` (expected calibration error of the scores, 0 is best).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from florence.demo.evaluation.boxes import Found, evaluate_boxes
from florence.demo.evaluation.captions import cider
from florence.demo.evaluation.metrics import (
    RIGHT_OVERLAP,
    Figures,
    Judged,
    Polygon,
    area_overlap,
    box_overlap,
    expected_calibration_error,
    mean,
    word_accuracy,
)  # fmt: skip
from florence.demo.world.ground_truth import Question, brief, full
from florence.demo.world.scenes import Scene, Thing
from florence.types.results import Detection, Detections, OcrRegion, OcrRegions, Result, Segmentation, Text


@dataclass(frozen=True)
class Graded:
    """One question with what was answered."""

    scene: Scene
    question: Question
    result: Result


@dataclass(frozen=True)
class Grade:
    """A task's figures, and each scored thing of its answers."""

    figures: Figures
    judged: list[Judged]


def grade(task: str, answers: Sequence[Graded]) -> Grade:
    """A task over its answers: their number, the task's figures (nan where nothing was to measure), ECE.

    KeyError for no task, MissingLibrary without the extra "evaluate".
    """
    figures, judged = _GRADES[task](answers)
    questions: Figures = {"questions": len(answers)}
    return Grade(questions | figures | {"ECE": expected_calibration_error(judged)}, judged)


_Parts = tuple[Figures, list[Judged]]


def _judged(scores: Iterable[float | None], right: Iterable[bool]) -> list[Judged]:
    """Those that have a score."""
    pairs = zip(scores, right, strict=True)
    return [Judged(score, is_right) for score, is_right in pairs if score is not None]


def _text(answers: Sequence[Graded]) -> _Parts:
    right = [_said(one).text == one.question.answer for one in answers]
    return {"exact": mean(right)}, _judged([_said(one).score for one in answers], right)


def _said(one: Graded) -> Text:
    return one.result if isinstance(one.result, Text) else Text(text="")


def _caption(answers: Sequence[Graded]) -> _Parts:
    """CIDEr beside what the right captions themselves would get: short ones don't come to 10."""
    figures, judged = _text(answers)
    said, right = [_said(one).text for one in answers], [one.question.answer for one in answers]
    score, best = cider(said, right)
    return figures | {"CIDEr": score, "CIDEr_of_truth": best}, judged


def _ocr(answers: Sequence[Graded]) -> _Parts:
    figures, judged = _text(answers)
    counts = [word_accuracy(_said(one).text, one.question.answer) for one in answers]
    hits, words = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return figures | {"words": hits / words if words else mean([])}, judged


def _detection(label: Callable[[Thing], str]) -> Callable[[Sequence[Graded]], _Parts]:
    """All boxes of a picture; `label` is what the task calls a thing."""

    def graded(answers: Sequence[Graded]) -> _Parts:
        found, truth = [], []
        for picture, one in enumerate(answers):
            found += [Found(picture, each.label, each.box, each.score) for each in _detections(one)]
            truth += [Found(picture, label(thing), thing.box) for thing in _things(one)]
        figures, right = evaluate_boxes(found, truth)
        return figures, _judged([one.score for one in found], right)

    return graded


def _detections(one: Graded) -> list[Detection]:
    return one.result.detections if isinstance(one.result, Detections) else []


def _things(one: Graded) -> list[Thing]:
    return [one.scene.things[index] for index in one.question.things]


def _grounding(answers: Sequence[Graded]) -> _Parts:
    """Of each phrase, whether the first box of that very phrase lies right; of each box, whether it lies on
    the thing that its phrase names."""
    hits, judged = [], []
    for one in answers:
        named = {name: thing for thing in _things(one) for name in (brief(thing), full(thing))}
        boxes = _detections(one)
        right = [each.label in named and _lies_on(each, named[each.label]) for each in boxes]
        judged += _judged([each.score for each in boxes], right)
        for thing in _things(one):
            own = [ok for ok, box in zip(right, boxes, strict=True) if named.get(box.label) is thing]
            hits.append(own[:1] == [True])
    return {"right@50": mean(hits)}, judged


def _lies_on(found: Detection, thing: Thing) -> bool:
    return box_overlap(found.box, thing.box) >= RIGHT_OVERLAP


def _open_vocabulary(answers: Sequence[Graded]) -> _Parts:
    """Average precision over all phrases together, of those that name something in the picture. A box of
    another label than the phrase that was asked stands where no truth is."""
    present = [one for one in answers if one.question.things]
    absent = [_detections(one) for one in answers if not one.question.things]
    found, truth = [], []
    for number, one in enumerate(present):
        phrase = one.question.text or ""
        found += [Found((number, each.label), "", each.box, each.score) for each in _detections(one)]
        truth += [Found((number, phrase), "", thing.box) for thing in _things(one)]
    figures, right = evaluate_boxes(found, truth)
    judged = _judged([one.score for one in found], right)
    for boxes in absent:
        judged += _judged([each.score for each in boxes], [False] * len(boxes))
    return figures | {"invented": mean([bool(boxes) for boxes in absent])}, judged


def _segmentation(answers: Sequence[Graded]) -> _Parts:
    """All that was outlined together against the one thing's outline."""
    overlaps, judged = [], []
    for one in answers:
        instances = one.result.instances if isinstance(one.result, Segmentation) else []
        (thing,) = _things(one)
        overlaps.append(_overlap(one, [part for each in instances for part in each.polygons], thing))
        right = [_overlap(one, each.polygons, thing) >= RIGHT_OVERLAP for each in instances]
        judged += _judged([each.score for each in instances], right)
    return {"mIoU": mean(overlaps), "right@50": mean([each >= RIGHT_OVERLAP for each in overlaps])}, judged


def _ocr_regions(answers: Sequence[Graded]) -> _Parts:
    """Of each printed word, whether it was read with a quadrilateral that lies right; of each region, whether
    such a word stands there."""
    hits, judged = [], []
    for one in answers:
        regions = one.result.regions if isinstance(one.result, OcrRegions) else []
        fits = [[_reads(one, region, thing) for region in regions] for thing in _things(one)]
        hits += [any(row) for row in fits]
        right = [any(row[number] for row in fits) for number in range(len(regions))]
        judged += _judged([region.score for region in regions], right)
    return {"words@50": mean(hits)}, judged


def _reads(one: Graded, region: OcrRegion, thing: Thing) -> bool:
    return region.text == thing.text and _overlap(one, [region.quad], thing) >= RIGHT_OVERLAP


def _overlap(one: Graded, polygons: Sequence[Polygon], thing: Thing) -> float:
    return area_overlap(polygons, [thing.outline.ravel().tolist()], (one.scene.width, one.scene.height))


_GRADES: Final[dict[str, Callable[[Sequence[Graded]], _Parts]]] = {
    "<CAPTION>": _caption,
    "<DETAILED_CAPTION>": _caption,
    "<MORE_DETAILED_CAPTION>": _caption,
    "<CAPTION_TO_PHRASE_GROUNDING>": _grounding,
    "<OD>": _detection(lambda thing: thing.shape),
    "<DENSE_REGION_CAPTION>": _detection(full),
    "<REGION_PROPOSAL>": _detection(lambda thing: ""),
    "<OCR>": _ocr,
    "<OCR_WITH_REGION>": _ocr_regions,
    "<REFERRING_EXPRESSION_SEGMENTATION>": _segmentation,
    "<REGION_TO_SEGMENTATION>": _segmentation,
    "<OPEN_VOCABULARY_DETECTION>": _open_vocabulary,
    "<REGION_TO_CATEGORY>": _text,
    "<REGION_TO_DESCRIPTION>": _text,
    "<REGION_TO_OCR>": _ocr,
}
