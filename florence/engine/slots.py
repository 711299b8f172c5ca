"""Which slots and rows of the caches are free. Plain numbers: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one request lies: a slot, and a row for each of its beams."""

    index: int
    rows: tuple[int, ...]


class SlotAllocator:
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

    def take(self, beams: int) -> Slot:
        """A place for a request. Raises `IndexError` where there is none."""
        if not self._slots or len(self._rows) < beams:
            raise IndexError("no free slot")
        return Slot(heappop(self._slots), tuple(heappop(self._rows) for _ in range(beams)))

    def give_back(self, slot: Slot) -> None:
        """Free a place that was taken."""
        heappush(self._slots, slot.index)
        for row in slot.rows:
            heappush(self._rows, row)

    def check(self, taken: Iterable[Slot], slots: int, rows: int) -> None:
        """Raise `RuntimeError` unless free and taken places are all there are, each once."""
        places = list(taken)
        everything = (
            sorted([*self._slots, *(slot.index for slot in places)]),
            sorted([*self._rows, *(row for slot in places for row in slot.rows)]),
        )
        if everything != (list(range(slots)), list(range(rows))):
            raise RuntimeError(f"places were lost or given twice: {everything}")
