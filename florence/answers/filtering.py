"""Keeps the items of an answer that a request wants, in their order; typed results and the original's JSON
follow the same rules.

Overlaps are those of items' bounding boxes. Knows nothing about how answers are generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from florence.export.geometry import Box, bounds_of, overlap
from florence.types.filters import ItemFilter
from florence.types.results import Detections, OcrRegions, Result, Segmentation

_TOLERANCE: Final = 0.01  # pixels; the original's are float32
_LISTS: Final = (("bboxes", "labels"), ("quad_boxes", "labels"), ("polygons", "labels"))
_OPEN_LISTS: Final = (("bboxes", "bboxes_labels"), ("polygons", "polygons_labels"))


@dataclass(frozen=True, slots=True)
class Place:
    """An item as the filters see it. `bounds`: left, top, right, bottom in pixels; `score`: None if
    unknown."""

    label: str
    bounds: Box
    score: float | None


def keep_items(result: Result, wanted: ItemFilter) -> Result:
    """The result with only the wanted items."""
    kept = kept_items(items_of(result), wanted)
    return with_items(result, lambda items: [items[index] for index in kept])


def with_items(result: Result, change: Callable[[list[Any]], list[Any]]) -> Result:
    """The result with its items replaced by what `change` makes of them; a text is not changed."""
    names = {Detections: "detections", OcrRegions: "regions", Segmentation: "instances"}
    name = names.get(type(result))
    return result.model_copy(update={name: change(getattr(result, name))}) if name else result


def keep_original_items(answer: Mapping[str, Any], result: Result, wanted: ItemFilter) -> dict[str, Any]:
    """The original's JSON, {task: content}, with only the wanted items; a text is not changed.

    `result`: the typed result of the same text, which has the scores. An item of the original's JSON that is
    not in it has no score.
    """
    ((task, content),) = answer.items()
    if not isinstance(content, dict):
        return {task: content}
    known = items_of(result)
    lists = _OPEN_LISTS if "bboxes_labels" in content else _LISTS
    parts = [(places, labels) for places, labels in lists if places in content]
    items, owners = list[Place](), list[tuple[str, str, int]]()
    for places, labels in parts:
        for index, (place, label) in enumerate(zip(content[places], content[labels], strict=True)):
            numbers = [number for part in place for number in part] if places == "polygons" else place
            bounds = bounds_of(numbers)
            items.append(Place(label, bounds, _score_of(bounds, known)))
            owners.append((places, labels, index))
    kept = [owners[index] for index in kept_items(items, wanted)]
    filtered = dict(content)
    for places, labels in parts:
        own = [index for owner, _, index in kept if owner == places]
        filtered |= {name: [content[name][index] for index in own] for name in (places, labels)}
    return {task: filtered}


def kept_items(items: Sequence[Place], wanted: ItemFilter) -> list[int]:
    """Indices of the wanted items, in order. Of equal scores the earlier item ranks higher; items without a
    score rank lowest."""
    labels = wanted.labels and {label.casefold() for label in wanted.labels}
    able = [
        index
        for index, item in enumerate(items)
        if (not labels or item.label.strip().casefold() in labels)
        and (wanted.min_score is None or (item.score is not None and item.score >= wanted.min_score))
        and (wanted.min_size is None or _shorter_side(item.bounds) >= wanted.min_size)
    ]
    best = sorted(able, key=lambda index: _rank(items[index]))
    if wanted.nms_iou is not None:
        best = _suppressed(items, best, wanted.nms_iou, agnostic=bool(wanted.nms_agnostic))
    return sorted(best[: wanted.max_items])


def _rank(item: Place) -> float:
    return 1.0 if item.score is None else -item.score


def _suppressed(items: Sequence[Place], best: Sequence[int], max_iou: float, *, agnostic: bool) -> list[int]:
    """Greedy non-maximum suppression, as in R-CNN (Girshick et al., 2014)."""
    kept: list[int] = []
    for index in best:
        item = items[index]
        rivals = (items[each] for each in kept if agnostic or items[each].label == item.label)
        if all(overlap(item.bounds, rival.bounds) <= max_iou for rival in rivals):
            kept.append(index)
    return kept


def items_of(result: Result) -> list[Place]:
    """The items of a typed result, in order; none for a text."""
    if isinstance(result, Detections):
        return [Place(each.label, each.box, each.score) for each in result.detections]
    if isinstance(result, OcrRegions):
        return [Place(each.text, bounds_of(each.quad), each.score) for each in result.regions]
    if isinstance(result, Segmentation):
        return [
            Place(each.label, bounds_of([number for part in each.polygons for number in part]), each.score)
            for each in result.instances
        ]
    return []


def _score_of(bounds: Box, known: Sequence[Place]) -> float | None:
    """The score of the first known item with the same bounds."""
    near = (
        item.score
        for item in known
        if all(abs(a - b) <= _TOLERANCE for a, b in zip(item.bounds, bounds, strict=True))
    )
    return next(near, None)


def _shorter_side(bounds: Box) -> float:
    return min(bounds[2] - bounds[0], bounds[3] - bounds[1])
