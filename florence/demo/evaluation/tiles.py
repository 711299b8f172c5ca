"""How well large pictures are answered: the words of pages of small print, the things of crowded scenes.

Knows answers and what was drawn; nothing about how pictures are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

from florence.answers.filtering import items_of, overlap
from florence.answers.tiled_views import area, meet
from florence.demo.world.scenes import Scene, Thing
from florence.evaluation.measures.overlaps import RIGHT_OVERLAP
from florence.types.results import Result


@dataclass(frozen=True, slots=True)
class Findings:
    """What stands in a picture, what of it was found, and what of that under its right label; the answer's
    items, and those of them that lie where another one says the same thing already."""

    things: int = 0
    found: int = 0
    right: int = 0
    items: int = 0
    twice: int = 0

    def __add__(self, other: Findings) -> Findings:
        return Findings(*(sum(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


def tally(scene: Scene, result: Result, label: Callable[[Thing], str]) -> Findings:
    """An answer in boxes or quads. A thing is found by an item that overlaps it by half (IoU), and right if
    such an item has its label. More items that do, or have its label and lie half in it, say it twice."""
    places = items_of(result)
    found = right = twice = 0
    for thing in scene.things:
        name = label(thing)
        over = [place for place in places if overlap(place.bounds, thing.box) >= RIGHT_OVERLAP]
        inside = [
            place
            for place in places
            if place.label == name and area(meet(place.bounds, thing.box)) > 0.5 * area(place.bounds)
        ]
        found += bool(over)
        right += any(place.label == name for place in over)
        twice += max(0, len({*over, *inside}) - 1)
    return Findings(len(scene.things), found, right, len(places), twice)
