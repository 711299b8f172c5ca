"""Groups items of neighbouring tiles that are the same thing.

Where two tiles overlap, both see a thing, whole or cut by a border. So two items are compared only inside the
overlap, where the same thing has the same place. Labels only break ties, since a part of a thing is often
mistaken for something else. Items of the same tile are never the same thing.

Knows boxes in pixels of the whole picture; knows nothing about kinds of results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from florence.export.geometry import Box, area, meet, overlap

MARGIN: Final = 0.025
"""An item closer to a border than this share of a tile's side is taken to be cut by it."""
SAME: Final = 0.5
"""IoU, inside the overlap of two tiles, from which two items are one thing."""
INSIDE: Final = 0.4
"""A thing with this share of its area inside another one that a border cuts is a part of that one."""

Key = tuple[int, int]
"""Index of a tile, and index of an item in it."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A thing as one tile shows it. `tile`, `order`: indices of the tile, and of the item in it; `score`: 0
    where unknown; `bounds`: left, top, right, bottom; `reach`: the same, but unlimited beyond borders that
    cut the thing."""

    tile: int
    order: int
    label: str
    score: float
    bounds: Box
    reach: Box

    @property
    def key(self) -> Key:
        """Identifies the sighting."""
        return self.tile, self.order

    @property
    def cut(self) -> bool:
        """Whether a border of the tile cuts the thing."""
        return self.bounds != self.reach


def reach_of(bounds: Box, frame: Box, size: tuple[int, int]) -> Box:
    """An item's bounds, moved beyond each border of its tile that cuts it. `frame`: the tile's bounds;
    `size`: the picture's width and height, whose edges cut nothing."""
    left, top, right, bottom = bounds
    across, down = MARGIN * (frame[2] - frame[0]), MARGIN * (frame[3] - frame[1])
    return (
        frame[0] - across if frame[0] > 0 and left <= frame[0] + across else left,
        frame[1] - down if frame[1] > 0 and top <= frame[1] + down else top,
        frame[2] + across if frame[2] < size[0] and right >= frame[2] - across else right,
        frame[3] + down if frame[3] < size[1] and bottom >= frame[3] - down else bottom,
    )


def better_seen(view: Sighting, frames: Sequence[Box], size: tuple[int, int]) -> bool:
    """Whether another tile shows everything that this view shows of a thing without cutting it. `frames`: the
    tiles' bounds; `size`: the picture's width and height."""
    return any(
        meet(view.bounds, frame) == view.bounds == reach_of(view.bounds, frame, size)
        for tile, frame in enumerate(frames)
        if tile != view.tile
    )


def group_views(views: Sequence[Sighting], frames: Sequence[Box]) -> list[list[Sighting]]:
    """The views of each thing, at most one from each tile. `frames`: the tiles' bounds.

    The most similar ones are merged first (agglomerative clustering), so the order of the views does not
    matter.
    """
    groups = {view.key: [view] for view in views}
    for _, _, a, b in sorted(_alike(views, frames), key=lambda pair: (-pair[0], not pair[1], *pair[2:])):
        one, other = groups[a], groups[b]
        if {view.tile for view in one}.isdisjoint(view.tile for view in other):
            one += other
            groups |= {view.key: one for view in other}
    return list({id(group): group for group in groups.values()}.values())


_Pair = tuple[float, bool, Key, Key]  # similarity, whether labels are equal, keys


def _alike(views: Sequence[Sighting], frames: Sequence[Box]) -> Iterator[_Pair]:
    """Pairs of views from two tiles that may be the same thing."""
    shown: dict[int, list[Sighting]] = {}
    for view in views:
        shown.setdefault(view.tile, []).append(view)
    for first, second in combinations(sorted(shown), 2):
        zone, common = _zone(frames[first], frames[second]), meet(frames[first], frames[second])
        if not area(zone):
            continue
        others = [view for view in shown[second] if area(meet(view.reach, zone))]
        for one in shown[first]:
            if not area(meet(one.reach, zone)):
                continue
            for other in others:
                like = _likeness(one, other, zone, common)
                if like >= SAME:
                    yield like, one.label == other.label, one.key, other.key


def _likeness(a: Sighting, b: Sighting, zone: Box, common: Box) -> float:
    """How well two views agree inside the overlap, 0 to 1: by `bounds` or by `reach`, whichever is better."""
    return max(
        overlap(meet(a.reach, zone), meet(b.reach, zone)),
        overlap(meet(a.bounds, common), meet(b.bounds, common)),
    )


def _zone(a: Box, b: Box) -> Box:
    """The overlap of two tiles with a margin, so that tiles that only touch have a zone too."""
    across, down = (MARGIN * min(a[2 + axis] - a[axis], b[2 + axis] - b[axis]) for axis in (0, 1))
    left, top, right, bottom = meet(a, b)
    return left - across, top - down, right + across, bottom + down


def grown(bounds: Box, frame: Box) -> Box:
    """The bounds, extended on each side by the margin of a tile with this frame."""
    across, down = MARGIN * (frame[2] - frame[0]), MARGIN * (frame[3] - frame[1])
    return bounds[0] - across, bounds[1] - down, bounds[2] + across, bounds[3] + down
