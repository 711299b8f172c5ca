"""Metrics for answers in outlines: regions, expressions, and things by class.

Knows nothing about files or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from florence.evaluation.files.examples import Answered, Outline, TrueThing, picture_numbers
from florence.evaluation.measures.calibration import Judged
from florence.evaluation.measures.figures import Evaluation, Metric, Share, judge, mean_of
from florence.evaluation.measures.overlaps import RIGHT_OVERLAP, area_overlap, areas, mask_of
from florence.evaluation.measures.precision import AveragePrecision, PictureId, PlacedThing
from florence.export.annotation import Annotation
from florence.export.geometry import box_polygon
from florence.types.results import Segmentation


def instances_of(row: Answered) -> list[Annotation]:
    """The answer's outlines."""
    return row.result.annotations() if isinstance(row.result, Segmentation) else []


def outline_of(thing: TrueThing) -> Outline:
    """The area that the thing covers; its box if no outline is known."""
    return [box_polygon(thing.box)] if thing.outline is None else thing.outline


def measure_regions(rows: Sequence[Answered]) -> Evaluation:
    """As `measure_outlines`, for regions: average precision by the class of the thing in the region."""
    return _measure(rows, lambda thing: thing.label)


def measure_outlines(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of the union of all outlines against the outline of the one thing asked for. oIoU: the sum of
    intersections divided by the sum of unions, as for RefCOCO. Average precision: of each outline by its
    score; right only on the thing that was asked for."""
    return _measure(rows, lambda thing: "")


def mask_precision(
    rows: Sequence[Answered],
    pictures: Sequence[PictureId],
    label: Callable[[Answered], str],
    *,
    prefix: str = "",
) -> AveragePrecision:
    """COCO's figures of masks. `pictures`: each row's unit of evaluation; `label`: returns a row's class."""
    found, truth = [], []
    for place, row in zip(pictures, rows, strict=True):
        found += [
            PlacedThing(place, label(row), each.bounds, each.score, mask=mask_of(each.polygons, row.size))
            for each in instances_of(row)
        ]
        truth += [
            PlacedThing(
                place, label(row), thing.box, crowd=thing.crowd, mask=mask_of(outline_of(thing), row.size)
            )
            for thing in row.example.truth.things
        ]
    return AveragePrecision(found, truth, prefix=prefix, masks=True)


def _measure(rows: Sequence[Answered], label: Callable[[TrueThing], str]) -> Evaluation:
    overlaps: list[float] = []
    shared: list[float] = []
    together: list[float] = []
    judged: list[Judged] = []
    for row in rows:
        (thing,), instances = row.example.truth.things, instances_of(row)
        truth = outline_of(thing)
        both, either = areas([part for each in instances for part in each.polygons], truth, row.size)
        overlaps.append(both / either if both else 0.0)
        shared.append(both)
        together.append(either)
        right = [area_overlap(each.polygons, truth, row.size) >= RIGHT_OVERLAP for each in instances]
        judged += judge([each.score for each in instances], right)
    pictures = picture_numbers(rows)
    alone = [(number, str(index)) for index, number in enumerate(pictures)]
    parts: list[Metric] = [
        mean_of("mIoU", pictures, overlaps),
        Share("oIoU", pictures, shared, together),
        mean_of("right@50", pictures, [each >= RIGHT_OVERLAP for each in overlaps]),
        mask_precision(rows, alone, lambda row: label(row.example.truth.things[0])),
    ]
    return Evaluation(rows, parts, overlaps, judged)
