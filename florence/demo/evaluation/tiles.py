"""How well large pictures are answered: the words of pages of small print, the things of crowded scenes.

Knows answers and what was drawn; nothing about how pictures are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

from florence.answers.filtering import items_of, overlap
from florence.answers.tiled_views import area, meet
from florence.demo.evaluation.metrics import RIGHT_OVERLAP
from florence.demo.world.scenes import Scene, Thing
from florence.types.results import Result


@dataclass(frozen=True, slots=True)
class Tally:
    """What stands in a picture, what of it was found, and what of that under its right label; the answer's
    items, and those of them that lie where another one says the same thing already."""

    things: int = 0
    found: int = 0
    right: int = 0
    items: int = 0
    twice: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(sum(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


def tally(scene: Scene, result: Result, label: Callable[[Thing], str]) -> Tally:
    """An answer in boxes or quads. A thing is found by an item that overlaps it by half (IoU), and right if
    such an item has its label. More items that do, or have its label and lie half upon it, are twice."""
    places = items_of(result)
    found = right = twice = 0
    for thing in scene.things:
        over = [place for place in places if overlap(place.bounds, thing.box) >= RIGHT_OVERLAP]
        least = [min(area(place.bounds), area(thing.box)) / 2 for place in places]
        on = sum(
            area(meet(place.bounds, thing.box)) >= half > 0
            for place, half in zip(places, least, strict=True)
            if place in over or place.label == label(thing)
        )
        found += bool(over)
        right += any(place.label == label(thing) for place in over)
        twice += max(0, on - 1)
    return Tally(len(scene.things), found, right, len(places), twice)
