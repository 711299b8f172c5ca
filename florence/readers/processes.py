"""Reads pictures in processes of their own, so that a crash or a bomb in a decoder fails one request. Knows
nothing about tasks.
"""

from __future__ import annotations

from collections.abc import Callable

from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize
from florence.readers.budget import DecodeBudget
from florence.readers.memory import OnMemory, PixelMemory
from florence.readers.process import ProcessReader
from florence.readers.readers import Readers
from florence.readers.wire import ProcessLimits

SPARE_SLOTS = 64
"""Pictures whose pixels may wait in shared memory for their encode; the pixels of any more are copied."""


class ProcessReaders(Readers):
    """`count` reader processes, which start at once. `on_memory`: see `memory.OnMemory`."""

    def __init__(
        self,
        size: InputSize,
        limits: ImageLimits = DEFAULT_LIMITS,
        count: int = 2,
        on_read: Callable[[float], None] | None = None,
        *,
        on_memory: OnMemory | None = None,
        spare_slots: int = SPARE_SLOTS,
        process_limits: ProcessLimits | None = None,
    ) -> None:
        self.memory = PixelMemory(size.height, size.width, count + spare_slots, on_memory)
        self.nbytes = self.memory.buffer.nbytes
        bounds = process_limits or ProcessLimits()
        budget = DecodeBudget(limits.decode_bytes)
        self._processes = [ProcessReader(size, limits, bounds, self.memory, budget) for _ in range(count)]
        super().__init__(self._processes, on_read)

    @property
    def pids(self) -> list[int]:
        """The ids of the current reader processes."""
        return [process.pid for process in self._processes]

    def close(self, drain_s: float | None = None) -> None:
        """As `Readers.close`. Pixels that were read stay valid."""
        super().close(drain_s)
        self.memory.close()
