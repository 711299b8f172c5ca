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
_ROWS: Final = 4  # of plates for which the column has room in the smallest picture


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
    column to the picture's right. Without, and where the column is full, it is the one that hides least, at
    worst on the thing itself.
    """
    places: dict[int, Rectangle] = {}
    away: dict[int, Size] = {}
    room = max([picture[1], *(_ROWS * height for _, height in plates)]) if grow else 0
    for number, (thing, plate) in enumerate(zip(things, plates, strict=True)):
        if plate == (0, 0):
            continue
        reach = _grown(thing, plate)
        near = [each for each in things if _overlap(each, reach)]
        taken = [each for each in places.values() if _overlap(each, reach)]
        place, hides = _least_hiding(thing, plate, picture, near, taken)
        used = sum(height + _gap(away) for _, height in away.values())
        if (place is None or hides > _MOST_HIDDEN) and used + plate[1] <= room:
            away[number] = plate
        else:
            places[number] = place or _inside(thing, plate, picture, taken)
    if not away:
        return Placement(places, frozenset(), picture)
    column = _column(things, away, picture)
    right, bottom = (max(place[edge] for place in column.values()) for edge in (2, 3))
    size = int(right) + _gap(away), max(picture[1], int(bottom) + 1)
    return Placement(places | column, frozenset(away), size)


def _least_hiding(
    thing: Rectangle, plate: Size, picture: Size, near: Sequence[Rectangle], taken: Sequence[Rectangle]
) -> tuple[Rectangle | None, float]:
    """The best place beside the thing, if there is one, and what it hides of the things that the thing does
    not lie in."""
    beside = [each for each in _beside(thing, plate, picture) if not _covers(each, [thing, *taken])]
    if not beside:
        return None, 0
    others = [other for other in near if _overlap(thing, other) < _overlap(thing, thing)]
    # A place that hides next to nothing of the others is chosen by what it hides of all.
    hidden = [(max(_hidden(each, others), _MOST_HIDDEN), _hidden(each, near)) for each in beside]
    least = min(hidden)
    return beside[hidden.index(least)], least[0]


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
    return max(2, max((height for _, height in plates.values()), default=0) // 4)


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


def _grown(thing: Rectangle, plate: Size) -> Rectangle:
    """All that a plate beside the thing may cover."""
    left, top, right, bottom = thing
    return left - plate[0], top - 2 * plate[1], right + plate[0], bottom + 2 * plate[1]


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
