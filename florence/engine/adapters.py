"""Which adapters are in the device's memory, and in which slot. Imports no torch.

A slot keeps its adapter after the last request that uses it, until another adapter needs the slot: the least
recently used one is evicted first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from florence.model.adapters.lowrank import Factors


@dataclass(frozen=True, eq=False, slots=True)
class EngineAdapter:
    """An adapter that requests may use; compared by identity.

    `layers`: its factors by the names of the model's linear layers, in host memory. `picture_key`: tells
    picture features that were computed with this adapter from those computed without; empty where the adapter
    does not change the tower.
    """

    name: str
    layers: Mapping[str, Factors]
    picture_key: bytes


class AdapterSlots:
    """Slots 1 to `count`; slot 0 stands for no adapter."""

    def __init__(self, count: int) -> None:
        self._held: dict[int, EngineAdapter | None] = dict.fromkeys(range(1, count + 1))
        self._users = dict.fromkeys(self._held, 0)

    def fits(self, adapters: Iterable[EngineAdapter | None]) -> int:
        """How many of the next requests, given their adapters in order, fit beside the requests in
        progress."""
        used = {self._held[slot] for slot, users in self._users.items() if users}
        count = 0
        for adapter in adapters:
            if adapter is not None:
                used.add(adapter)
            if len(used) > len(self._held):
                break
            count += 1
        return count

    def take(self, adapter: EngineAdapter | None) -> tuple[int, bool]:
        """Count one more request with this adapter. Returns its slot, and whether the adapter has to be
        loaded into it. Raises `IndexError` where no slot is free."""
        if adapter is None:
            return 0, False
        slot = next((slot for slot, held in self._held.items() if held is adapter), None)
        new = slot is None
        if slot is None:
            slot = next((slot for slot in self._held if not self._users[slot]), None)
        if slot is None:
            raise IndexError("no free slot for an adapter")
        del self._held[slot]  # move to the end: the most recently used
        self._held[slot] = adapter
        self._users[slot] += 1
        return slot, new

    def give_back(self, slot: int) -> None:
        """Count one request less in this slot."""
        if slot:
            self._users[slot] -= 1
