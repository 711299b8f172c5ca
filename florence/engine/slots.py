"""Which slots and rows of the caches are free. Plain numbers: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class Place:
    """Where one request lies: a slot, and a row for each of its beams."""

    slot: int
    rows: tuple[int, ...]


class Places:
    """Free slots and rows, the lowest given first, so that those in use stay close together."""

    def __init__(self, slots: int, rows: int) -> None:
        self._slots, self._rows = list(range(slots)), list(range(rows))

    def fits(self, beams: Iterable[int]) -> int:
        """How many of these requests, each with its number of beams, in this order, there is room for."""
        slots, rows, count = len(self._slots), len(self._rows), 0
        for wanted in beams:
            slots, rows = slots - 1, rows - wanted
            if slots < 0 or rows < 0:
                break
            count += 1
        return count

    def take(self, beams: int) -> Place:
        """A place for a request. Raises `IndexError` where there is none."""
        if not self._slots or len(self._rows) < beams:
            raise IndexError("no free place")
        return Place(heappop(self._slots), tuple(heappop(self._rows) for _ in range(beams)))

    def give_back(self, place: Place) -> None:
        """Free a place that was taken."""
        heappush(self._slots, place.slot)
        for row in place.rows:
            heappush(self._rows, row)

    def check(self, taken: Iterable[Place], slots: int, rows: int) -> None:
        """Raise `RuntimeError` unless free and taken places are all there are, each once."""
        places = list(taken)
        everything = (
            sorted([*self._slots, *(place.slot for place in places)]),
            sorted([*self._rows, *(row for place in places for row in place.rows)]),
        )
        if everything != (list(range(slots)), list(range(rows))):
            raise RuntimeError(f"places were lost or given twice: {everything}")
