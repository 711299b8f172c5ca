"""Decode steps of a few fixed shapes, each captured as a graph before the first request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from florence.engine.device.capture.buckets import Buckets, StepKey
from florence.engine.device.capture.graphs import CapturedWork, GraphCapturer
from florence.engine.device.memory import DeviceMemory
from florence.engine.device.steps import (
    Occupancy,
    StepContext,
    Steps,
    dense_batch,
    extent_of,
    grouped_batch,
    occupancy_of,
    shape_of,
)
from florence.engine.sequence import StepSequence
from florence.engine.slots import Slot
from florence.model.attention import DecodeBatch


class BucketSteps(Steps):
    """Steps over the first slots and rows of the caches, or over groups of rows where the attention backend
    is `grouped`, in the cheapest captured shape that fits. Each shape has fixed input tensors. Before
    `prepare`, steps have the same shapes and run uncaptured."""

    def __init__(
        self, context: StepContext, memory: DeviceMemory, buckets: Buckets, capturer: GraphCapturer
    ) -> None:
        super().__init__(context, memory)
        self._buckets, self._capturer = buckets, capturer
        self.prepared: dict[StepKey, CapturedWork] = {}
        self._latest: tuple[StepKey, Occupancy] | None = None

    def run(self, sequences: Sequence[StepSequence]) -> None:
        key = self._key(sequences)
        latest = key, occupancy_of(sequences)
        if key not in self.prepared:
            self.step(self._batch(key, sequences).map(self._memory.upload), key)
            return
        if latest != self._latest:
            self.prepared[key].load(self._batch(key, sequences).tensors())
            self._latest = latest
        self.prepared[key].run()

    def prepare(self) -> list[bool]:
        """Capture all shapes, largest first; returns for each whether it could be captured. No search is
        running, so these steps change none."""
        self._latest = None
        for key in reversed(self._buckets.steps):
            shape = key.shape
            request = StepSequence(
                slot=Slot(0, tuple(range(shape.beams))), encoder_length=shape.encoder_length
            )
            batch = self._batch(key, [request]).map(self._memory.upload)
            work = CapturedWork(
                f"the step {key}", partial(self.step, batch, key), batch.tensors(), self._memory
            )
            work.warm_up()
            self.prepared[key] = work
        for work in self.prepared.values():
            work.capture(self._capturer)
        return [work.captured for work in self.prepared.values()]

    @property
    def captured(self) -> list[StepKey]:
        """The shapes that are captured, largest first."""
        return [key for key, work in self.prepared.items() if work.captured]

    def step(self, batch: DecodeBatch, key: StepKey) -> Sequence[Tensor]:
        """The captured work: a step of this shape. It returns nothing; its results are what it writes."""
        self._context.step(batch, key.shape)
        return ()

    def _key(self, sequences: Sequence[StepSequence]) -> StepKey:
        shape = shape_of(sequences, self._context.state.max_positions)
        if self._context.attention.grouped:
            count = len(sequences)
            return self._buckets.step(StepKey(count, count * shape.beams, shape))
        return self._buckets.step(StepKey(*extent_of(sequences), shape))

    def _batch(self, key: StepKey, sequences: Sequence[StepSequence]) -> DecodeBatch:
        if self._context.attention.grouped:
            return grouped_batch(sequences, key.slots, key.shape.beams)
        return dense_batch(sequences, key.slots, key.rows, key.shape.beams)
