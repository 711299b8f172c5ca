"""Allocates slots and rows of the caches. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class Slot:
    """One request's place in the caches: a slot, and a row for each beam."""

    index: int
    rows: tuple[int, ...]


UNPLACED = Slot(-1, ())
"""The value for a request that has no slot yet."""


class SlotAllocator:
    """The free slots and rows. The lowest are taken first, so that those in use stay close together."""

    def __init__(self, slots: int, rows: int) -> None:
        self._slots, self._rows = list(range(slots)), list(range(rows))

    def fits(self, beams: Iterable[int]) -> int:
        """How many of the next requests, given their numbers of beams in order, there is room for."""
        slots, rows, count = len(self._slots), len(self._rows), 0
        for wanted in beams:
            slots, rows = slots - 1, rows - wanted
            if slots < 0 or rows < 0:
                break
            count += 1
        return count

    def take(self, beams: int) -> Slot:
        """Take a slot for a request with `beams` beams. Raises `IndexError` where there is no room."""
        if not self._slots or len(self._rows) < beams:
            raise IndexError("no free slot")
        return Slot(heappop(self._slots), tuple(heappop(self._rows) for _ in range(beams)))

    def give_back(self, slot: Slot) -> None:
        """Free a slot that was taken."""
        heappush(self._slots, slot.index)
        for row in slot.rows:
            heappush(self._rows, row)

    def check(self, taken: Iterable[Slot], slots: int, rows: int) -> None:
        """Raise `RuntimeError` unless free and `taken` slots and rows together are all `slots` and `rows`,
        each exactly once."""
        held = list(taken)
        everything = (
            sorted([*self._slots, *(slot.index for slot in held)]),
            sorted([*self._rows, *(row for slot in held for row in slot.rows)]),
        )
        if everything != (list(range(slots)), list(range(rows))):
            raise RuntimeError(f"slots were lost or taken twice: {everything}")
