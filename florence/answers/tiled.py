"""Merges the results of a picture's tiles into one: each thing once, in pixels of the whole picture (sliced
inference, as in Akyon et al., Slicing Aided Hyper Inference, 2022).

`tiled_views` decides which items are views of one thing, `tiled_things` which things stay. If a view is not
cut and nearly as large as the union of all views, it represents the thing: of several the one with the best
score, under the label with the highest total score. Otherwise the parts are joined: their bounding box, all
polygons, one line of text. The score of a joined thing is the lowest of its parts', since it is right only if
each part is. The result does not depend on the order of the tiles.

Knows nothing about pictures, models and requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from florence.answers.filtering import items_of, with_items
from florence.answers.reading_order import lines_of
from florence.answers.split_text import LinePart, join_parts
from florence.answers.tiled_things import FoundThing, ItemT, without_parts
from florence.answers.tiled_views import Key, Sighting, better_seen, group_views, reach_of
from florence.export.geometry import Box, area, box_polygon, corners_of, hull
from florence.types.results import (
    Detection,
    Detections,
    Instance,
    OcrRegion,
    OcrRegions,
    Quad,
    Result,
    Segmentation,
)

_WHOLE: Final = 0.75
"""A view that represents a thing has at least this share of the area of the bounding box of all views."""
_NEAR: Final = 0.25
"""Borders of two views are the same border if they differ by at most this share of the thing's shorter
side."""
_SURE: Final = 0.5
"""From this score on, a text at a border is kept although no other tile read it."""


@dataclass(frozen=True, slots=True)
class TileResult:
    """A tile's result, in pixels of the tile. `frame`: left, top, right and bottom of the tile in the
    picture."""

    frame: Box
    result: Result


def merge_results(tiles: Sequence[TileResult], size: tuple[int, int]) -> Result:
    """The result of a picture; `size`: its width and height. `tiles`: all with boxes, all with quads, or some
    with boxes and others with polygons.

    Boxes and polygons are ordered by tile, from the top left one on, and within a tile as the model wrote
    them; quads are in reading order.
    """
    tiles = sorted(tiles, key=lambda tile: (tile.frame[1], tile.frame[0]))
    results = [_moved(tile.result, tile.frame[0], tile.frame[1]) for tile in tiles]
    frames = [tile.frame for tile in tiles]
    if any(isinstance(result, OcrRegions) for result in results):
        read = _merge(results, frames, size, lambda result: result.regions, _joined_regions)
        read = [region for region in read if region.text]  # mostly the second quad of a part
        lines = lines_of([region.quad for region in read])
        return OcrRegions(regions=[read[index] for line in lines for index in line])
    if any(isinstance(result, Segmentation) for result in results):
        results = [_outlined(result) for result in results]
        things = _merge(results, frames, size, lambda result: result.instances, _joined_instances)
        return Segmentation(instances=things)
    found = _merge(results, frames, size, lambda result: result.detections, _joined_detections)
    return Detections(detections=found)


def text_of(read: OcrRegions) -> str:
    """The text in reading order, one line of text for each line."""
    lines = lines_of([region.quad for region in read.regions])
    return "\n".join(" ".join(read.regions[index].text for index in line) for line in lines)


def _merge(
    results: Sequence[Result],
    frames: Sequence[Box],
    size: tuple[int, int],
    items_in: Callable[[Any], list[ItemT]],
    join: Callable[[Sequence[ItemT]], ItemT],
) -> list[ItemT]:
    """Each thing once, in the order of its first view."""
    views, items = list[Sighting](), dict[Key, ItemT]()
    for tile, (result, frame) in enumerate(zip(results, frames, strict=True)):
        for order, (place, item) in enumerate(zip(items_of(result), items_in(result), strict=True)):
            reach = reach_of(place.bounds, frame, size)
            views.append(Sighting(tile, order, place.label, place.score or 0.0, place.bounds, reach))
            items[tile, order] = item
    things = [
        FoundThing.of(_resolve(group, items, join), group)
        for group in group_views(views, frames)
        if not _is_stray(group, items, frames, size)
    ]
    things.sort(key=lambda thing: thing.key)
    return [thing.item for thing in without_parts(things, frames)]


def _is_stray(
    views: Sequence[Sighting], items: Mapping[Key, ItemT], frames: Sequence[Box], size: tuple[int, int]
) -> bool:
    """Whether a thing was only seen cut by a border where another tile, in whose interior this area lies, did
    not see it. A text of which a border cuts little is often read correctly; then it has a high score."""
    (view, *others) = views
    believed = isinstance(items[view.key], OcrRegion) and view.score >= _SURE
    return not others and view.cut and not believed and better_seen(view, frames, size)


def _resolve(
    views: Sequence[Sighting], items: Mapping[Key, ItemT], join: Callable[[Sequence[ItemT]], ItemT]
) -> ItemT:
    """The item for a thing with these views."""
    union = area(hull([view.bounds for view in views]))
    clear = [view for view in views if not view.cut and area(view.bounds) >= _WHOLE * union]
    if clear:
        whole = [view for view in views if view in clear or any(_reaches(view, one.bounds) for one in clear)]
        whole.sort(key=lambda view: (view.cut, -view.score, view.key))
        label = _likeliest(whole)
        return items[next(view.key for view in whole if view.label == label)]
    # The largest view first: it decides the label.
    ranked = sorted(views, key=lambda view: (-area(view.bounds), view.key))
    return join([items[view.key] for view in ranked])


def _likeliest(views: Sequence[Sighting]) -> str:
    """The label with the highest total score; of equal ones the first."""
    votes = dict.fromkeys((view.label for view in views), 0.0)
    for view in views:
        votes[view.label] += view.score
    return max(votes, key=lambda label: votes[label])


def _reaches(view: Sighting, bounds: Box) -> bool:
    """Whether a view reaches a thing's full bounds, even if it seems to be cut by a border."""
    left, top, right, bottom = bounds
    near = _NEAR * min(right - left, bottom - top)
    return all(abs(a - b) <= near for a, b in zip(view.bounds, bounds, strict=True))


def _least(scores: Sequence[float | None]) -> float | None:
    """The lowest score; None where one is unknown."""
    known = [score for score in scores if score is not None]
    return min(known) if len(known) == len(scores) else None


def _scores(items: Sequence[Detection | Instance | OcrRegion]) -> dict[str, float | None]:
    return {
        "score": _least([item.score for item in items]),
        "original_score": _least([item.original_score for item in items]),
    }


def _joined_detections(parts: Sequence[Detection]) -> Detection:
    return Detection(label=parts[0].label, box=hull([part.box for part in parts]), **_scores(parts))


def _joined_instances(parts: Sequence[Instance]) -> Instance:
    polygons = [polygon for part in parts for polygon in part.polygons]
    return Instance(label=parts[0].label, polygons=polygons, **_scores(parts))


def _joined_regions(parts: Sequence[OcrRegion]) -> OcrRegion:
    """One line in the direction of its largest part, from the parts that extend it."""
    x1, y1, x2, y2 = parts[0].quad[:4]
    along = (x2 - x1, y2 - y1) if (x1, y1) != (x2, y2) else (1.0, 0.0)
    rows = sorted(((_span(part.quad, along), part) for part in parts), key=lambda row: (row[0], row[1].quad))
    kept = list[tuple[tuple[float, float], OcrRegion]]()
    for span, part in rows:
        if kept and span[1] <= kept[-1][0][1]:  # within the part before
            continue
        if kept and span[0] <= kept[-1][0][0]:
            kept.pop()
        kept.append((span, part))
    text = join_parts([LinePart(part.text, *span, part.score or 0.0) for span, part in kept])
    first, last = kept[0][1].quad, kept[-1][1].quad
    quad: Quad = (*first[:2], *last[2:6], *first[6:])
    return OcrRegion(text=text, quad=quad, **_scores([part for _, part in kept]))


def _span(quad: Quad, along: tuple[float, float]) -> tuple[float, float]:
    """Where a quad begins and ends along a direction, in pixels."""
    length = math.hypot(*along)
    places = [(x * along[0] + y * along[1]) / length for x, y in corners_of(quad)]
    return min(places), max(places)


def _outlined(result: Result) -> Result:
    """The result with boxes as polygons."""
    if not isinstance(result, Detections):
        return result
    rows = [(each, box_polygon(each.box)) for each in result.detections]
    return Segmentation(
        instances=[
            Instance(label=each.label, polygons=[corners], **_scores([each])) for each, corners in rows
        ]
    )


def _moved(result: Result, right: float, down: float) -> Result:
    """The result of a tile, moved by its corner's position to pixels of the picture."""

    def shift(numbers: Sequence[float]) -> tuple[Any, ...]:
        return tuple(number + (down if index % 2 else right) for index, number in enumerate(numbers))

    def moved(item: Detection | OcrRegion | Instance) -> Detection | OcrRegion | Instance:
        if isinstance(item, Detection):
            return item.model_copy(update={"box": shift(item.box)})
        if isinstance(item, OcrRegion):
            return item.model_copy(update={"quad": shift(item.quad)})
        return item.model_copy(update={"polygons": [list(shift(one)) for one in item.polygons]})

    return with_items(result, lambda items: list(map(moved, items)))
