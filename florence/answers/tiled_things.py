"""Filters the things that tiles saw: drops parts of other things, misread things, and text on top of text.

Each thing is compared with its neighbours only, so the cost is linear in the number of things. Knows boxes in
pixels of the whole picture; knows nothing about how views become things.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Generic, TypeVar

from florence.answers.tiled_views import INSIDE, SAME, Key, Sighting, grown
from florence.export.geometry import Box, area, clockwise, common_area, hull, meet, overlap, polygon_area
from florence.types.results import Detection, Instance, OcrRegion

ItemT = TypeVar("ItemT", Detection, Instance, OcrRegion)
_OVERPRINT: Final = 0.3
"""Share of the smaller of two texts that may overlap the other one if their scores are similar."""
_DOUBTFUL: Final = 0.5, 0.1
"""For a text with a score below the first number times the better score, the second number replaces
`_OVERPRINT`."""
_CELLS: Final = 4  # cells of `Places` along a tile's side


@dataclass(frozen=True, slots=True)
class FoundThing(Generic[ItemT]):
    """A thing seen by tiles. `label`, `key`: those of its first view; `bounds`: bounding box of all views;
    `tiles`: numbers of the tiles that show it; `rank`: orders things by quality: not cut, score, size."""

    item: ItemT
    label: str
    bounds: Box
    tiles: frozenset[int]
    rank: tuple[bool, float, float]
    key: Key

    @classmethod
    def of(cls, item: ItemT, views: Sequence[Sighting]) -> FoundThing[ItemT]:
        """The thing with these views."""
        bounds = hull([view.bounds for view in views])
        return cls(
            item,
            views[0].label,
            bounds,
            frozenset(view.tile for view in views),
            (any(not view.cut for view in views), item.score or 0.0, area(bounds)),
            min(view.key for view in views),
        )

    @property
    def is_text(self) -> bool:
        return isinstance(self.item, OcrRegion)


class Places(Generic[ItemT]):
    """An index of things by the cells of a grid that they touch."""

    def __init__(self, frame: Box) -> None:
        self._side = max(1.0, max(frame[2] - frame[0], frame[3] - frame[1]) / _CELLS)
        self.things: dict[tuple[int, int], list[FoundThing[ItemT]]] = defaultdict(list)

    def add(self, thing: FoundThing[ItemT]) -> None:
        for cell in self._cells(thing.bounds):
            self.things[cell].append(thing)

    def near(self, bounds: Box) -> Iterator[FoundThing[ItemT]]:
        """All things that may touch these bounds; some may come twice."""
        for cell in self._cells(bounds):
            yield from self.things.get(cell, ())

    def _cells(self, bounds: Box) -> Iterator[tuple[int, int]]:
        left, top, right, bottom = (int(number // self._side) for number in bounds)
        return product(range(left, right + 1), range(top, bottom + 1))


def without_parts(things: Sequence[FoundThing[ItemT]], frames: Sequence[Box]) -> list[FoundThing[ItemT]]:
    """The things without those that are only a part of another one or another one misread; of texts in the
    same place only the best stays. `frames`: the tiles' bounds."""
    places = Places[ItemT](frames[0])
    for thing in things:
        places.add(thing)
    things = [
        thing
        for thing in things
        if not any(
            _is_part(thing, other, frames) or _is_denied(thing, other, frames)
            for other in places.near(grown(thing.bounds, frames[0]))
        )
    ]
    kept, written = dict[Key, FoundThing[ItemT]](), Places[ItemT](frames[0])
    for thing in sorted(things, key=lambda thing: (-(thing.item.score or 0.0), thing.key)):
        if not any(_in_one_place(thing, other) for other in written.near(thing.bounds)):
            kept[thing.key] = thing
            written.add(thing)
    return [thing for thing in things if thing.key in kept]


def _is_part(thing: FoundThing[ItemT], other: FoundThing[ItemT], frames: Sequence[Box]) -> bool:
    """Whether a thing is another one as seen by tiles that cut it. Where little of the other is in the tile,
    the model may misplace it slightly; but distinct texts can be as close as that."""
    if thing is other or not (thing.is_text or thing.label == other.label) or other.rank <= thing.rank:
        return False
    around = other.bounds if thing.is_text else grown(other.bounds, frames[0])
    if area(meet(thing.bounds, around)) < INSIDE * area(thing.bounds) or other.tiles <= thing.tiles:
        return False
    return all(meet(other.bounds, frames[tile]) != other.bounds for tile in thing.tiles)


def _is_denied(thing: FoundThing[ItemT], other: FoundThing[ItemT], frames: Sequence[Box]) -> bool:
    """Whether a thing is in the place of a better one, and a tile that shows most of it did not see it. With
    different labels this means an IoU of at least a half; with the same label, that half of the thing is
    inside. For texts `_in_one_place` decides."""
    if thing is other or thing.is_text or other.rank <= thing.rank:
        return False
    half = 0.5 * area(thing.bounds)
    inside = thing.label == other.label and 0 < half <= area(meet(thing.bounds, other.bounds))
    if not inside and overlap(thing.bounds, other.bounds) < SAME:
        return False
    blind = (frame for tile, frame in enumerate(frames) if tile not in thing.tiles)
    return any(area(meet(thing.bounds, frame)) >= half for frame in blind)


def _in_one_place(thing: FoundThing[ItemT], other: FoundThing[ItemT]) -> bool:
    """Whether two texts overlap more than printed texts do. `other` has the better score."""
    one, another = thing.item, other.item
    if not (isinstance(one, OcrRegion) and isinstance(another, OcrRegion)):
        return False
    doubtful = (one.score or 0.0) < _DOUBTFUL[0] * (another.score or 0.0)
    max_shared = (_DOUBTFUL[1] if doubtful else _OVERPRINT) * min(
        polygon_area(one.quad), polygon_area(another.quad)
    )
    return common_area(clockwise(one.quad), clockwise(another.quad)) > max_shared
