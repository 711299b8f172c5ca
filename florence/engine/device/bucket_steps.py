"""Decode steps of a few fixed shapes, each captured as a graph on its second use: the first use warms up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from florence.engine.device.graphs import (
    MAX_GRAPHS,
    Buckets,
    CapturedWork,
    GraphCapturer,
    round_up,
    warn_once,
)
from florence.engine.device.memory import DeviceMemory
from florence.engine.device.search_state import StepShape
from florence.engine.device.steps import (
    Occupancy,
    StepContext,
    Steps,
    StepSequence,
    dense_batch,
    extent_of,
    occupancy_of,
    shape_of,
)
from florence.engine.slots import Slot
from florence.model.attention import DecodeBatch

MAX_PREPARED_LENGTH = 256
"""Positions of the longest sequences whose steps are captured at the start; longer ones on their second
use."""


@dataclass(frozen=True, slots=True)
class StepKey:
    """A shape of steps: the first `slots` and `rows` of the caches, and the sizes of the tensors."""

    slots: int
    rows: int
    shape: StepShape


class BucketSteps(Steps):
    """Steps over the first slots and rows of the caches, all sizes rounded up to buckets. Each shape has
    fixed input tensors. Shapes beyond `MAX_GRAPHS` run uncaptured."""

    def __init__(
        self, context: StepContext, memory: DeviceMemory, buckets: Buckets, capturer: GraphCapturer
    ) -> None:
        super().__init__(context, memory)
        self._buckets, self._capturer = buckets, capturer
        self._seen: dict[StepKey, CapturedWork] = {}
        self._latest: tuple[StepKey, Occupancy] | None = None
        self._warn = warn_once("steps")

    def run(self, sequences: Sequence[StepSequence]) -> None:
        key = self._key(sequences)
        if key not in self._seen and len(self._seen) >= MAX_GRAPHS:
            self._warn()
            self._context.step(self._batch(key, sequences).map(self._memory.upload), key.shape)
            return
        latest = key, occupancy_of(sequences)
        if latest != self._latest:
            self._load(key, sequences)
            self._latest = latest
        self._seen[key].run()

    def prepare(self, encoder_length: int) -> None:
        """Capture the shapes of requests with the usual number of beams and short sequences, largest first.

        No search is running yet, so these steps change no search.
        """
        beams = self._buckets.usual_beams
        lengths = [length for length in self._buckets.lengths if length <= MAX_PREPARED_LENGTH]
        for slots in reversed(self._buckets.slots):
            rows = range(0, min(slots * beams, self._buckets.rows[-1]) // beams * beams, beams)
            occupied = [Slot(slot, tuple(range(row, row + beams))) for slot, row in enumerate(rows)]
            for length in reversed(lengths):
                sequences = [StepSequence(slot, encoder_length + 1, length - 2) for slot in occupied]
                self.run(sequences)
                self.run(sequences)

    @property
    def captured(self) -> list[StepKey]:
        """The shapes that are captured, in the order of their first use."""
        return [key for key, work in self._seen.items() if work.captured]

    def _key(self, sequences: Sequence[StepSequence]) -> StepKey:
        sizes, shape = self._buckets, shape_of(sequences, self._context.state.max_positions)
        slots, rows = extent_of(sequences)
        return StepKey(
            round_up(slots, sizes.slots),
            round_up(rows, sizes.rows),
            StepShape(
                beams=round_up(shape.beams, sizes.beams),
                length=round_up(shape.length, sizes.lengths),
                greedy=True,
                encoder_length=round_up(shape.encoder_length, sizes.encoder_lengths),
                sampled=shape.sampled,
                penalized=shape.penalized,
            ),
        )

    def _load(self, key: StepKey, sequences: Sequence[StepSequence]) -> None:
        """Write these sequences into the fixed tensors of this shape."""
        batch = self._batch(key, sequences)
        if key in self._seen:
            self._seen[key].load(batch.tensors())
            return
        batch = batch.map(self._memory.upload)

        def work() -> Sequence[Tensor]:
            self._context.step(batch, key.shape)
            return ()

        self._seen[key] = CapturedWork(work, batch.tensors(), self._memory, self._capturer)

    def _batch(self, key: StepKey, sequences: Sequence[StepSequence]) -> DecodeBatch:
        return dense_batch(sequences, key.slots, key.rows, key.shape.beams)
