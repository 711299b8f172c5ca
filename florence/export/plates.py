"""Where the labels of things go: beside their thing, clear of each other; else to the picture's right.

Knows rectangles; knows nothing about fonts, colours or how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom
Size = tuple[int, int]  # width, height

_MOST_HIDDEN: Final = 0.02  # of other things, their shares added up, by a plate beside its thing


@dataclass(frozen=True, slots=True)
class Placement:
    """places: of plates by their number. away: the numbers of those in the column to the picture's right.
    size: of the picture with that column."""

    places: Mapping[int, Rectangle]
    away: frozenset[int]
    size: Size


def lay_out(things: Sequence[Rectangle], plates: Sequence[Size], picture: Size, *, grow: bool) -> Placement:
    """A place for the plate of each thing, where it has one: not of size (0, 0).

    It is the place beside the thing that hides least of other things. Where each such place is taken, out of
    the picture, or hides more than a little of a thing that the thing does not lie in: with `grow` it is in a
    column to the picture's right; without, it is the one that hides least, at worst on the thing itself.
    """
    places: dict[int, Rectangle] = {}
    away: dict[int, Size] = {}
    for number, (thing, plate) in enumerate(zip(things, plates, strict=True)):
        if plate == (0, 0):
            continue
        taken = list(places.values())
        others = [other for other in things if _overlap(thing, other) < _overlap(thing, thing)]
        beside = [each for each in _beside(thing, plate, picture) if not _covers(each, [thing, *taken])]
        # A place that hides next to nothing of the others is chosen by what it hides of all.
        hidden = [(max(_hidden(each, others), _MOST_HIDDEN), _hidden(each, things)) for each in beside]
        if beside and (min(hidden)[0] <= _MOST_HIDDEN or not grow):
            places[number] = beside[hidden.index(min(hidden))]
        elif grow:
            away[number] = plate
        else:
            places[number] = _inside(thing, plate, picture, taken)
    if not away:
        return Placement(places, frozenset(), picture)
    column = _column(things, away, picture)
    right, bottom = (max(place[edge] for place in column.values()) for edge in (2, 3))
    size = int(right) + _gap(away), max(picture[1], int(bottom) + 1)
    return Placement(places | column, frozenset(away), size)


def _column(things: Sequence[Rectangle], plates: Mapping[int, Size], picture: Size) -> dict[int, Rectangle]:
    """The plates to the right of the picture, in the order of their things from the top, each as near to the
    height of its thing as the others let it be."""
    gap = _gap(plates)
    order = sorted(plates, key=lambda number: things[number][1] + things[number][3])
    tops: list[float] = []
    free = 0.0
    for number in order:
        middle = (things[number][1] + things[number][3]) / 2
        tops.append(max(free, middle - plates[number][1] / 2))
        free = tops[-1] + plates[number][1] + gap
    end: float = max(picture[1], sum(plate[1] + gap for plate in plates.values())) - gap
    for index in reversed(range(len(order))):  # back up where they reach below the picture
        tops[index] = min(tops[index], end - plates[order[index]][1])
        end = tops[index] - gap
    left = picture[0] + 4 * gap  # room for the lines to their things
    return {
        number: (left, top, left + plates[number][0], top + plates[number][1])
        for number, top in zip(order, tops, strict=True)
    }


def _gap(plates: Mapping[int, Size]) -> int:
    return max(2, max(height for _, height in plates.values()) // 4)


def _beside(thing: Rectangle, plate: Size, picture: Size) -> list[Rectangle]:
    """Places in the picture, best first: above the thing and below it, at its left and its right end; farther
    above and below; to its right and its left."""
    left, top, right, bottom = thing
    width, height = plate
    xs = _within(left, width, picture[0]), _within(right - width, width, picture[0])
    ys = _within(top, height, picture[1]), _within(bottom - height, height, picture[1])
    corners = [(x, y) for y in (top - height, bottom, top - 2 * height, bottom + height) for x in xs]
    corners += [(x, y) for x in (right, left - width) for y in ys]
    return [
        (x, y, x + width, y + height)
        for x, y in corners
        if 0 <= x <= picture[0] - width and 0 <= y <= picture[1] - height
    ]


def _inside(thing: Rectangle, plate: Size, picture: Size, taken: Sequence[Rectangle]) -> Rectangle:
    """The place in the thing's left, from its top down, that covers least of the taken ones."""
    width, height = plate
    x = _within(thing[0], width, picture[0])
    rows = max(1, int(thing[3] - thing[1]) // height)
    ys = [_within(thing[1] + row * height, height, picture[1]) for row in range(rows)]
    places = [(x, y, x + width, y + height) for y in ys]
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _within(start: float, length: float, whole: float) -> float:
    return max(min(start, whole - length), 0)


def _covers(place: Rectangle, others: Sequence[Rectangle]) -> bool:
    return any(_overlap(place, other) > 0 for other in others)


def _hidden(place: Rectangle, things: Sequence[Rectangle]) -> float:
    """The shares of the things that the place covers, added up."""
    return sum(_overlap(place, each) / max(_overlap(each, each), 1) for each in things)


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """The area that both cover, in square pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)
