"""Places the labels of things: next to their thing without overlaps; else to the right of the picture.

Knows rectangles; knows nothing about fonts, colours or how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from florence.export.geometry import Box, area, meet

Size = tuple[int, int]  # width, height

_MAX_HIDDEN: Final = 0.02  # largest sum of hidden shares of other things by a plate next to its thing
_ROWS: Final = 4  # rows of plates for which the column has room in the smallest picture


@dataclass(frozen=True, slots=True)
class Placement:
    """`places`: plates' rectangles by index. `away`: indices of those in the column to the right of the
    picture. `size`: of the picture including that column."""

    places: Mapping[int, Box]
    away: frozenset[int]
    size: Size


def lay_out(things: Sequence[Box], plates: Sequence[Size], picture: Size, *, grow: bool) -> Placement:
    """Place the plate of each thing; a plate of size (0, 0) means none.

    A plate goes to the place next to its thing that hides least of other things. If each such place is taken,
    outside the picture, or hides too much of a thing that does not contain this one: with `grow` the plate
    goes into a column to the right of the picture. Without `grow`, or if the column is full, it goes to the
    place that hides least, at worst on the thing itself.
    """
    places: dict[int, Box] = {}
    away: dict[int, Size] = {}
    room = max([picture[1], *(_ROWS * height for _, height in plates)]) if grow else 0
    for number, (thing, plate) in enumerate(zip(things, plates, strict=True)):
        if plate == (0, 0):
            continue
        reach = _grown(thing, plate)
        near = [each for each in things if _common(each, reach)]
        taken = [each for each in places.values() if _common(each, reach)]
        place, hides = _least_hiding(thing, plate, picture, near, taken)
        used = sum(height + _gap(away) for _, height in away.values())
        if (place is None or hides > _MAX_HIDDEN) and used + plate[1] <= room:
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
    thing: Box, plate: Size, picture: Size, near: Sequence[Box], taken: Sequence[Box]
) -> tuple[Box | None, float]:
    """The best place next to the thing, None if there is none, and the hidden shares of things that don't
    contain the thing."""
    places, full = _beside(thing, plate, picture), [thing, *taken]
    beside = [each for each in places if not any(_common(each, other) for other in full)]
    if not beside:
        return None, 0
    others = [other for other in near if _common(thing, other) < _common(thing, thing)]
    # Among places that hide almost nothing of these, the one that hides least of all things is chosen.
    hidden = [(max(_hidden(each, others), _MAX_HIDDEN), _hidden(each, near)) for each in beside]
    least = min(hidden)
    return beside[hidden.index(least)], least[0]


def _column(things: Sequence[Box], plates: Mapping[int, Size], picture: Size) -> dict[int, Box]:
    """The plates to the right of the picture, in the order of their things from the top, each as close to its
    thing's height as the others allow."""
    gap = _gap(plates)
    order = sorted(plates, key=lambda number: things[number][1] + things[number][3])
    tops: list[float] = []
    free = 0.0
    for number in order:
        middle = (things[number][1] + things[number][3]) / 2
        tops.append(max(free, middle - plates[number][1] / 2))
        free = tops[-1] + plates[number][1] + gap
    end: float = max(picture[1], sum(plate[1] + gap for plate in plates.values())) - gap
    for index in reversed(range(len(order))):  # move up those that reach below the picture
        tops[index] = min(tops[index], end - plates[order[index]][1])
        end = tops[index] - gap
    left = picture[0] + 4 * gap  # room for lines to the things
    return {
        number: (left, top, left + plates[number][0], top + plates[number][1])
        for number, top in zip(order, tops, strict=True)
    }


def _gap(plates: Mapping[int, Size]) -> int:
    return max(2, max((height for _, height in plates.values()), default=0) // 4)


def _beside(thing: Box, plate: Size, picture: Size) -> list[Box]:
    """Candidate places in the picture, best first: above and below the thing, at its left and right end;
    farther above and below; to its right and left."""
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


def _inside(thing: Box, plate: Size, picture: Size, taken: Sequence[Box]) -> Box:
    """The place along the thing's left side, from its top down, that covers least of the taken ones."""
    width, height = plate
    x = _within(thing[0], width, picture[0])
    rows = max(1, int(thing[3] - thing[1]) // height)
    ys = [_within(thing[1] + row * height, height, picture[1]) for row in range(rows)]
    places = [(x, y, x + width, y + height) for y in ys]
    return min(places, key=lambda place: sum(_common(place, other) for other in taken))


def _grown(thing: Box, plate: Size) -> Box:
    """The area that a plate next to the thing may cover."""
    left, top, right, bottom = thing
    return left - plate[0], top - 2 * plate[1], right + plate[0], bottom + 2 * plate[1]


def _within(start: float, length: float, whole: float) -> float:
    return max(min(start, whole - length), 0)


def _hidden(place: Box, things: Sequence[Box]) -> float:
    """The sum over things of the share that the place covers."""
    return sum(_common(place, each) / max(_common(each, each), 1) for each in things)


def _common(one: Box, other: Box) -> float:
    """The area of the intersection, in square pixels."""
    return area(meet(one, other))
