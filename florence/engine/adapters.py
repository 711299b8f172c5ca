"""Which adapters are in the device's memory, and in which slot. Imports no torch.

An adapter is loaded when the first request that uses it is encoded. It keeps its slot after the last one,
until another adapter needs the slot: the least recently used one is evicted first. Knows nothing about
batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from florence.engine.sequence import SequenceState, Wait
    from florence.model.adapters.lowrank import AdapterBank, Factors


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
    """The adapters of one model, in the slots of its bank; slot 0 stands for no adapter, and without a bank
    there is no other. Not thread-safe: only the engine's thread uses it.
    """

    def __init__(self, bank: AdapterBank | None, settle: Wait) -> None:
        """`settle`: waits for encodes on a stream of their own, which may still read the adapter that is
        replaced."""
        self._bank, self._settle = bank, settle
        slots = range(1, 1 + (0 if bank is None else bank.slots))
        self._held: dict[int, EngineAdapter | None] = dict.fromkeys(slots)
        self._users = dict.fromkeys(slots, 0)

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

    def enter(self, sequences: Sequence[SequenceState], changed: list[str]) -> None:
        """Give each request the slot of its adapter, loading it if needed. Adds to `changed` the names of
        adapters whose loading moved or resized tensors, or failed, so that captured graphs must not be
        replayed. Raises `IndexError` where there is no free slot, and whatever the device raises."""
        for sequence in sequences:
            adapter = sequence.request.adapter
            if adapter is None:
                continue
            slot = next((slot for slot, held in self._held.items() if held is adapter), None)
            if slot is None:
                slot = self._load(adapter, changed)
            del self._held[slot]  # move to the end: the most recently used
            self._held[slot] = adapter
            self._users[slot] += 1
            sequence.adapter = slot

    def _load(self, adapter: EngineAdapter, changed: list[str]) -> int:
        """Load an adapter into a slot without requests."""
        slot = next((slot for slot in self._held if not self._users[slot]), None)
        if slot is None or self._bank is None:
            raise IndexError("no free slot for an adapter")
        self._held[slot] = None  # a failure may leave parts of both adapters there
        self._settle()
        changed.append(adapter.name)
        if not self._bank.place(slot, adapter.layers):
            changed.pop()
        return slot

    def leave(self, sequence: SequenceState) -> None:
        """Release the adapter of a request that ended, or failed before its encode."""
        if sequence.adapter:
            self._users[sequence.adapter] -= 1
            sequence.adapter = 0
