"""What is left of the things that tiles saw: without parts of others, things misread, and text on text.

Each thing is compared with its neighbours only, so that the cost grows as the number of things does. Knows
boxes in pixels of the whole picture; nothing about how views become things.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Generic, TypeVar

from florence.answers.filtering import overlap
from florence.answers.quads import area_of, common_area, points_of
from florence.answers.tiled_views import INSIDE, SAME, Key, Sighting, area, grown, hull, meet
from florence.types.results import Box, Detection, Instance, OcrRegion

ItemT = TypeVar("ItemT", Detection, Instance, OcrRegion)
_OVERPRINT: Final = 0.3
"""Of the smaller of two texts: what may lie on the other one, of nearly the same score."""
_DOUBTFUL: Final = 0.5, 0.1
"""Of the better score, and as `_OVERPRINT` for a text whose score is below that."""
_CELLS: Final = 4  # of `Places`, along a tile's side


@dataclass(frozen=True, slots=True)
class FoundThing(Generic[ItemT]):
    """A thing once it is found. label: of its first view; bounds: around all views; tiles: which ones show
    it; rank: which of two things is the better one: whole, likely, large; key: of its first view."""

    item: ItemT
    label: str
    bounds: Box
    tiles: frozenset[int]
    rank: tuple[bool, float, float]
    key: Key

    @classmethod
    def of(cls, item: ItemT, views: Sequence[Sighting]) -> FoundThing[ItemT]:
        """The thing that has these views."""
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
    """Things by the cells of a grid in which they lie."""

    def __init__(self, frame: Box) -> None:
        self._side = max(1.0, max(frame[2] - frame[0], frame[3] - frame[1]) / _CELLS)
        self.things: dict[tuple[int, int], list[FoundThing[ItemT]]] = defaultdict(list)

    def add(self, thing: FoundThing[ItemT]) -> None:
        for cell in self._cells(thing.bounds):
            self.things[cell].append(thing)

    def near(self, bounds: Box) -> Iterator[FoundThing[ItemT]]:
        """All that may touch these bounds, some perhaps twice."""
        for cell in self._cells(bounds):
            yield from self.things.get(cell, ())

    def _cells(self, bounds: Box) -> Iterator[tuple[int, int]]:
        left, top, right, bottom = (int(number // self._side) for number in bounds)
        return product(range(left, right + 1), range(top, bottom + 1))


def without_parts(things: Sequence[FoundThing[ItemT]], frames: Sequence[Box]) -> list[FoundThing[ItemT]]:
    """Without what is only a part of another thing, or another thing misread; and of texts that stand in one
    place only the best. frames: the tiles' bounds."""
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
    """Whether a thing is what tiles that cut another one took for all of it. Where little of that is in the
    tile, the model may place it a little beside; texts do stand so near to each other."""
    if thing is other or not (thing.is_text or thing.label == other.label) or other.rank <= thing.rank:
        return False
    around = other.bounds if thing.is_text else grown(other.bounds, frames[0])
    if area(meet(thing.bounds, around)) < INSIDE * area(thing.bounds) or other.tiles <= thing.tiles:
        return False
    return all(meet(other.bounds, frames[tile]) != other.bounds for tile in thing.tiles)


def _is_denied(thing: FoundThing[ItemT], other: FoundThing[ItemT], frames: Sequence[Box]) -> bool:
    """Whether a thing lies in a better one's place, and a tile that shows most of it did not see it. What has
    another label is in that place if they overlap by half (IoU), what has the same one if half of it is.
    Of texts `_in_one_place` decides."""
    if thing is other or thing.is_text or other.rank <= thing.rank:
        return False
    most = 0.5 * area(thing.bounds)
    inside = thing.label == other.label and 0 < most <= area(meet(thing.bounds, other.bounds))
    if not inside and overlap(thing.bounds, other.bounds) < SAME:
        return False
    blind = (frame for tile, frame in enumerate(frames) if tile not in thing.tiles)
    return any(area(meet(thing.bounds, frame)) >= most for frame in blind)


def _in_one_place(thing: FoundThing[ItemT], other: FoundThing[ItemT]) -> bool:
    """Whether two texts, the other one with the better score, overlap as no printed ones do."""
    one, another = thing.item, other.item
    if not (isinstance(one, OcrRegion) and isinstance(another, OcrRegion)):
        return False
    doubtful = (one.score or 0.0) < _DOUBTFUL[0] * (another.score or 0.0)
    a, b = points_of(one.quad), points_of(another.quad)
    return common_area(a, b) > (_DOUBTFUL[1] if doubtful else _OVERPRINT) * min(area_of(a), area_of(b))
