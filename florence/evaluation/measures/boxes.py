"""Metrics for answers in boxes: classes, dense captions, open vocabulary, phrases, expressions.

Labels are compared after `same_words`. Knows nothing about files or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from florence.evaluation.files.examples import Answered, TrueThing, picture_numbers, same_words
from florence.evaluation.measures.calibration import Judged
from florence.evaluation.measures.captions import CaptionScores, words_here
from florence.evaluation.measures.figures import Evaluation, Metric, judge, mean_of
from florence.evaluation.measures.masks import mask_precision
from florence.evaluation.measures.overlaps import RIGHT_OVERLAP, box_overlap
from florence.evaluation.measures.precision import AveragePrecision, PictureId, PlacedThing
from florence.types.results import Detection, Detections, Segmentation

_WORDING: Final = ("METEOR", "ROUGE-L")  # need no word weights, which would depend on the answers
_MAX_NAMED: Final = 8  # most labels in a note


def boxes_of(row: Answered) -> list[Detection]:
    """The answer's boxes; for polygons their bounding boxes."""
    if isinstance(row.result, Segmentation):
        return [
            Detection(label=each.label, box=each.bounds, score=each.score)
            for each in row.result.annotations()
        ]
    return row.result.detections if isinstance(row.result, Detections) else []


def measure_boxes(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of all boxes of a picture, either all with labels or all without."""
    precision = _precision(rows, same_words)
    return Evaluation(
        rows, [precision], _qualities(rows, precision.right), _judged(rows, precision), _unknown_labels(rows)
    )


def measure_dense(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of boxes with descriptions: with exact wording, by box only, and the wording of boxes in the
    right place."""
    by_wording, alone = _precision(rows, same_words), _precision(rows, lambda label: "", prefix="boxes_")
    found = [(number, each) for number, row in _numbered(rows) for each in boxes_of(row)]
    things = [thing for row in rows for thing in row.example.truth.things]
    pairs = [
        (number, each.label, things[match].label)
        for (number, each), match in zip(found, alone.matches, strict=True)
        if match is not None and not things[match].crowd
    ]
    wording = CaptionScores(
        [number for number, _, _ in pairs],
        [said for _, said, _ in pairs],
        [[right] for _, _, right in pairs],
        scores=_WORDING,
    )
    notes = [f"ROUGE-L (and METEOR, with Java): the wording of boxes that lie right, after {words_here()}"]
    return Evaluation(
        rows, [by_wording, alone, wording], _qualities(rows, alone.right), _judged(rows, by_wording), notes
    )


def measure_open_vocabulary(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of boxes for a named thing: COCO's figures by class; those of all texts together ("pooled");
    the share of absent things that got a box. For outlines also COCO's figures of masks by class ("masks"),
    where the outline of each thing is known."""
    asked = [((number, ""), row) for number, row in _numbered(rows)]
    by_class = _placed(asked, lambda row, _: row.example.text or "")
    together = pooled(rows, prefix="pooled_")
    notes = [] if any(not row.example.truth.things for row in rows) else [
        "each picture was asked only for the classes that are in it: boxes of absent ones cost nothing"
    ]  # fmt: skip
    parts: list[Metric] = [by_class, *together.parts]
    outlined = any(isinstance(row.result, Segmentation) for row in rows)
    if outlined and all(thing.outline for row in rows for thing in row.example.truth.things):
        whole = [(number, "") for number in picture_numbers(rows)]
        parts.append(mask_precision(rows, whole, lambda row: row.example.text or "", prefix="masks_"))
    return Evaluation(rows, parts, _qualities(rows, by_class.right), together.judged, notes)


def pooled(rows: Sequence[Answered], *, prefix: str = "") -> Evaluation:
    """Metrics with all texts as one class, each question on its own; boxes for absent things count as
    invented, not in precision."""
    numbered = list(_numbered(rows))
    present = [(number, row) for number, row in numbered if row.example.truth.things]
    absent = [(number, row) for number, row in numbered if not row.example.truth.things]
    asked = [((number, row.example.text or ""), row) for number, row in present]
    precision = _placed(asked, lambda *_: "", prefix)
    invented = mean_of(
        "invented", [number for number, _ in absent], [float(bool(boxes_of(row))) for _, row in absent]
    )
    judged = _judged([row for _, row in present], precision)
    for _, row in absent:
        judged += judge([each.score for each in boxes_of(row)], [False] * len(boxes_of(row)))
    return Evaluation(rows, [precision, invented], [], judged)


def measure_grounding(rows: Sequence[Answered]) -> Evaluation:
    """For each phrase, whether its first box is on one of its things (recall at 1, any box); for each box,
    whether it is on a thing that its phrase names."""
    hits: list[float] = []
    pictures, judged, qualities = [], [], []
    for number, row in _numbered(rows):
        named: dict[str, list[TrueThing]] = {}
        for thing in row.example.truth.things:
            named.setdefault(same_words(thing.label), []).append(thing)
        boxes = [(same_words(each.label), each) for each in boxes_of(row)]
        right = [any(_lies_on(each, thing) for thing in named.get(phrase, ())) for phrase, each in boxes]
        judged += judge([each.score for _, each in boxes], right)
        first = [
            next((ok for (said, _), ok in zip(boxes, right, strict=True) if said == phrase), False)
            for phrase in named
        ]
        hits += first
        pictures += [number] * len(first)
        qualities.append(sum(first) / len(first))
    return Evaluation(rows, [mean_of("right@50", pictures, hits)], qualities, judged)


def measure_expressions(rows: Sequence[Answered]) -> Evaluation:
    """For each expression, the overlap of the first box with the one thing that it refers to."""
    overlaps, judged = [], []
    for row in rows:
        (thing,), boxes = row.example.truth.things, boxes_of(row)
        overlaps.append(box_overlap(boxes[0].box, thing.box) if boxes else 0.0)
        judged += judge([each.score for each in boxes], [_lies_on(each, thing) for each in boxes])
    pictures, right = picture_numbers(rows), [float(each >= RIGHT_OVERLAP) for each in overlaps]
    parts = [mean_of("right@50", pictures, right), mean_of("mIoU", pictures, overlaps)]
    return Evaluation(rows, parts, overlaps, judged)


def _numbered(rows: Sequence[Answered]) -> list[tuple[int, Answered]]:
    return list(zip(picture_numbers(rows), rows, strict=True))


def _precision(
    rows: Sequence[Answered], label: Callable[[str], str], *, prefix: str = ""
) -> AveragePrecision:
    asked = [((number, str(index)), row) for index, (number, row) in enumerate(_numbered(rows))]
    return _placed(asked, lambda _, written: label(written), prefix)  # a file may list a picture twice


def _placed(
    rows: Sequence[tuple[PictureId, Answered]], label: Callable[[Answered, str], str], prefix: str = ""
) -> AveragePrecision:
    """COCO's figures of boxes. `rows`: each with its unit of evaluation; `label`: from a row and a thing's
    own label."""
    found, truth = [], []
    for place, row in rows:
        found += [PlacedThing(place, label(row, each.label), each.box, each.score) for each in boxes_of(row)]
        truth += [
            PlacedThing(place, label(row, thing.label), thing.box, crowd=thing.crowd)
            for thing in row.example.truth.things
        ]
    return AveragePrecision(found, truth, prefix=prefix)


def _judged(rows: Sequence[Answered], precision: AveragePrecision) -> list[Judged]:
    return judge([each.score for row in rows for each in boxes_of(row)], precision.right)


def _qualities(rows: Sequence[Answered], right: Sequence[bool | None]) -> list[float]:
    """The F1 score of each row; 1 where there is nothing and nothing was found."""
    qualities, ends = [], iter(right)
    for row in rows:
        own = [next(ends) for _ in boxes_of(row)]
        true = sum(not thing.crowd for thing in row.example.truth.things)
        counted = sum(ok is not None for ok in own) + true
        qualities.append(2 * own.count(True) / counted if counted else 1.0)
    return qualities


def _unknown_labels(rows: Sequence[Answered]) -> list[str]:
    known = {same_words(thing.label) for row in rows for thing in row.example.truth.things}
    others = Counter(
        each.label for row in rows for each in boxes_of(row) if same_words(each.label) not in known
    )
    if not others:
        return []
    named = ", ".join(f"{label!r} {count}" for label, count in others.most_common(_MAX_NAMED))
    return [f"{others.total()} boxes have labels that no true thing has: {named}"]


def _lies_on(found: Detection, thing: TrueThing) -> bool:
    return box_overlap(found.box, thing.box) >= RIGHT_OVERLAP
