"""Graph capture: work of fixed shapes, captured once and replayed.

A decode step or an encode is hundreds of small kernels, which take longer to launch than to run; a CUDA graph
launches them all at once. Captured work reads and writes fixed buffers only. On a CPU it is tested by
`EagerCapturer`, which repeats the work in place of a replay.
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
    """Captures work that reads and writes fixed buffers."""

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """Capture `work` without running it. Returns a function that replays it, and the fixed tensors that
        hold its results after a replay. Graphs share memory: a replay may overwrite the results of others.
        Raises whatever the device raises; other work can still be captured and run afterwards."""

    def reset(self) -> None:
        """Free the memory of all graphs; none of them may be replayed afterwards."""


class CudaGraphCapturer:
    """Captures CUDA graphs on one device. They share one memory pool, so the largest should come first.
    `priority`: of their kernels' stream; a lower number means a higher priority."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._device, self.priority = device, priority
        self.reset()

    def reset(self) -> None:
        # A stream of its own: torch's default capture stream belongs to the first device that was used.
        self._stream = torch.cuda.Stream(self._device, self.priority)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()  # a pool whose graphs were all freed takes no new ones

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
                # After an error torch leaves its stream current, and believes that a capture into the pool
                # goes on.
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
    """Work over fixed input buffers; `name`: for the log."""

    def __init__(self, name: str, work: Work, buffers: Sequence[Tensor], memory: DeviceMemory) -> None:
        self.name, self._work, self.buffers, self._memory = name, work, buffers, memory
        self._replay: tuple[Replay, Sequence[Tensor]] | None = None

    @property
    def captured(self) -> bool:
        """Whether runs are replays."""
        return self._replay is not None

    def warm_up(self) -> Sequence[Tensor]:
        """Do the work once, so that libraries prepare what they need, and return the results. Warm up all
        pieces of work before the first capture: the memory that this takes may not fit beside that of
        graphs."""
        return self._work()

    def capture(self, capturer: GraphCapturer) -> None:
        """Capture the work, after `warm_up`. If the capture fails, the log says so, and runs stay uncaptured:
        slower, with the same results."""
        try:
            self._replay = capturer.capture(self._work)
        except Exception as error:
            log.warning("%s can't be captured and will run uncaptured, slower: %s", self.name, error)
            log.debug("the capture failed here", exc_info=error)

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Write the inputs of the next runs. Rows of the buffers beyond them repeat the first row."""
        for buffer, value in zip(self.buffers, inputs, strict=True):
            self._memory.store(value, buffer[: len(value)])
            if len(value) < len(buffer):
                buffer[len(value) :].copy_(buffer[:1])

    def run(self) -> Sequence[Tensor]:
        """Do the work, and return its results: if captured, the same tensors each time."""
        if self._replay is None:
            return self._work()
        replay, results = self._replay
        replay()
        return results
