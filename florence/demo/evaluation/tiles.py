"""Counts how well large pictures are answered: words on pages of small print, things in crowded scenes.

Knows answers and scenes; knows nothing about how pictures are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

from florence.answers.filtering import items_of
from florence.demo.world.scenes import Scene, Thing
from florence.evaluation.measures.overlaps import RIGHT_OVERLAP
from florence.export.geometry import area, meet, overlap
from florence.types.results import Result


@dataclass(frozen=True, slots=True)
class Findings:
    """Counts for pictures: `things` in them, things `found`, found with the `right` label; `items` of the
    answer, and items that repeat a thing (`twice`)."""

    things: int = 0
    found: int = 0
    right: int = 0
    items: int = 0
    twice: int = 0

    def __add__(self, other: Findings) -> Findings:
        return Findings(*(sum(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


def tally(scene: Scene, result: Result, label: Callable[[Thing], str]) -> Findings:
    """The counts for an answer in boxes or quads. A thing is found by an item with an IoU of at least a half,
    and right if such an item has its label. Further such items, or items with its label that are half inside
    it, count as `twice`."""
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
