"""Loads an adapter onto the device when the first request that uses it is encoded, and counts its requests.

Joins the policy (`engine.adapters`) and the tensors (`model.lowrank`); knows nothing about batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from florence.engine.adapters import AdapterSlots, EngineAdapter
from florence.engine.sequence import SequenceState, Wait
from florence.model.adapters.lowrank import AdapterBank


class Residents:
    """The adapters on the device for one model; none without a bank. Not thread-safe: only the engine's
    thread uses it."""

    def __init__(self, bank: AdapterBank | None, settle: Wait) -> None:
        """`settle`: waits for encodes on a stream of their own, which may still read the adapter that is
        replaced."""
        self._bank, self._settle = bank, settle
        self._slots = AdapterSlots(0 if bank is None else bank.slots)

    def fits(self, adapters: Iterable[EngineAdapter | None]) -> int:
        """As `AdapterSlots.fits`."""
        return self._slots.fits(adapters)

    def enter(self, sequences: Sequence[SequenceState]) -> list[str]:
        """Give each request the slot of its adapter, loading it if needed. Returns the names of adapters
        whose loading moved or resized tensors, so that captured graphs must not be replayed. Raises
        `IndexError` where there is no free slot."""
        changed = []
        for sequence in sequences:
            adapter = sequence.request.adapter
            sequence.adapter, new = self._slots.take(adapter)
            if new and adapter is not None and self._bank is not None:
                self._settle()
                if self._bank.place(sequence.adapter, adapter.layers):
                    changed.append(adapter.name)
        return changed

    def leave(self, sequence: SequenceState) -> None:
        """A request has ended, or failed before it was encoded."""
        self._slots.give_back(sequence.adapter)
        sequence.adapter = 0
