"""Graph capture: work of fixed shapes, captured once and replayed.

A decode step and an encode are hundreds of small kernels, whose launches take a GPU longer than the
computation; a CUDA graph launches them at once. Captured work reads and writes fixed buffers only, so it also
runs, and is tested, on a CPU: there `EagerCapturer` repeats the work in place of a replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from florence.engine.device.memory import CudaMemory, DeviceMemory

log = logging.getLogger(__name__)

Work = Callable[[], Sequence[Tensor]]
Replay = Callable[[], None]


class GraphCapturer(Protocol):
    """Makes replays of work that reads and writes fixed buffers."""

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """A replay of `work`, and the fixed tensors that hold its results after a replay. The work itself is
        not done. Graphs share memory: a replay may overwrite the results of others. Raises whatever the
        device raises; other work can then still be captured, and be done."""

    def reset(self) -> None:
        """Drop the memory of all graphs; none that was captured before is replayed any more."""


class CudaGraphCapturer:
    """Captures CUDA graphs on one device. They share one memory pool, so the largest should come first.
    `priority`: of their kernels over those of other streams, the lowest number first."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._device, self.priority = device, priority
        self.reset()

    def reset(self) -> None:
        # A stream of its own: torch's default capture stream belongs to the first device that was used.
        self._stream = torch.cuda.Stream(self._device, self.priority)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()  # a pool that has lost all its graphs takes no new ones

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._device)
        with CudaMemory.exclusive:
            try:
                # Other threads may call CUDA meanwhile, for instance an engine of another device.
                with torch.cuda.graph(
                    graph, pool=self.pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    results = work()
            except BaseException:
                # torch leaves its stream in place, and takes the pool for one that is still captured into.
                torch.cuda.set_stream(before)
                self.reset()
                raise
        return graph.replay, results


class EagerCapturer:
    """Does the work at each replay: the same buffers and shapes without a graph."""

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        results: list[Tensor] = []

        def replay() -> None:
            made = work()
            if not results:
                results.extend(result.clone() for result in made)
            for result, new in zip(results, made, strict=True):
                result.copy_(new)

        return replay, results

    def reset(self) -> None:
        pass


class CapturedWork:
    """Work over fixed input buffers; `name` says in the log what it is."""

    def __init__(self, name: str, work: Work, buffers: Sequence[Tensor], memory: DeviceMemory) -> None:
        self.name, self._work, self.buffers, self._memory = name, work, buffers, memory
        self._replay: tuple[Replay, Sequence[Tensor]] | None = None

    @property
    def captured(self) -> bool:
        """Whether runs are replays."""
        return self._replay is not None

    def warm_up(self) -> Sequence[Tensor]:
        """Do the work once, which lets libraries prepare what they need; the results. Of several pieces of
        work all come before the first capture: what this allocates would not fit beside what a graph
        keeps."""
        return self._work()

    def capture(self, capturer: GraphCapturer) -> None:
        """Capture the work, which was done before. A capture that fails is logged, and runs do the work
        operation by operation: slower, with the same results."""
        try:
            self._replay = capturer.capture(self._work)
        except Exception as error:
            log.warning("%s can't be captured and will run uncaptured, slower: %s", self.name, error)
            log.debug("the capture failed here", exc_info=error)

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Write the inputs of the next runs. Rows of the buffers that they don't fill repeat the first."""
        for buffer, value in zip(self.buffers, inputs, strict=True):
            self._memory.store(value, buffer[: len(value)])
            if len(value) < len(buffer):
                buffer[len(value) :].copy_(buffer[:1])

    def run(self) -> Sequence[Tensor]:
        """The results; of captured work in the same tensors each time."""
        if self._replay is None:
            return self._work()
        replay, results = self._replay
        replay()
        return results
