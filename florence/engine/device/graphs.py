"""Graph capture: work of fixed shapes, captured once and replayed, and the buckets that keep shapes few.

A decode step and an encode are hundreds of small kernels, whose launches take a GPU longer than the
computation; a CUDA graph launches them at once. One graph for each bucket of sizes is the practice of vLLM
and nano-vllm. Captured work reads and writes fixed buffers only, so it also runs, and is tested, on a CPU:
there `EagerCapturer` repeats the work in place of a replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from florence.engine.device.memory import DeviceMemory

log = logging.getLogger(__name__)

MIN_BUCKET = 64
"""Positions of the smallest bucket of sequence lengths."""

PROMPT_BUCKETS = (16, 32, 64, 256)
"""Tokens of the prompts for which encodes are captured, beside the longest: the tasks' sentences have up to
14, those with a region 24 to 27, those with a caller's sentence about 40."""

MAX_GRAPHS = 256
"""Shapes of steps, and of encodes, that are captured; each keeps device memory until a reset."""

Work = Callable[[], Sequence[Tensor]]
Replay = Callable[[], None]


class GraphCapturer(Protocol):
    """Makes replays of work that reads and writes fixed buffers."""

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """A replay of `work`, and the fixed tensors that hold its results after a replay. The work itself is
        not done. Graphs share memory: a replay may overwrite the results of others."""

    def reset(self) -> None:
        """Drop the memory of all graphs; none that was captured before is replayed any more."""


class CudaGraphCapturer:
    """Captures CUDA graphs on one device. They share one memory pool, so the largest should come first."""

    def __init__(self, device: torch.device) -> None:
        # A stream of its own: torch's default capture stream belongs to the first device that was used.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.reset()

    def reset(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # a pool that has lost all its graphs takes no new ones

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may call CUDA meanwhile, for instance an engine of another device.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            results = work()
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
    """Work over fixed input buffers: the first run warms up, the second one captures."""

    def __init__(
        self, work: Work, buffers: Sequence[Tensor], memory: DeviceMemory, capturer: GraphCapturer
    ) -> None:
        self._work, self._buffers = work, buffers
        self._memory, self._capturer = memory, capturer
        self._warm = False
        self._replay: tuple[Replay, Sequence[Tensor]] | None = None

    @property
    def captured(self) -> bool:
        """Whether runs are replays."""
        return self._replay is not None

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Write the inputs of the next runs. Rows of the buffers that they don't fill repeat the first."""
        for buffer, value in zip(self._buffers, inputs, strict=True):
            self._memory.store(value, buffer[: len(value)])
            if len(value) < len(buffer):
                buffer[len(value) :].copy_(buffer[:1])

    def run(self) -> Sequence[Tensor]:
        """The results, from the second run on in fixed tensors."""
        if not self._warm:
            results = self._work()
            self._warm = True
            return results
        if self._replay is None:
            self._replay = self._capturer.capture(self._work)
        replay, results = self._replay
        replay()
        return results


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes that shapes are rounded up to, each tuple ascending and ending with the largest size.

    `usual_beams`: the number of beams of most requests.
    """

    usual_beams: int

    slots: tuple[int, ...]
    rows: tuple[int, ...]
    beams: tuple[int, ...]
    lengths: tuple[int, ...]
    encoder_lengths: tuple[int, ...]
    pictures: tuple[int, ...]
    prompts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        *,
        slots: int,
        rows: int,
        beams: int,
        max_beams: int,
        length: int,
        picture_tokens: int,
        encoder_room: int,
        pictures: int,
    ) -> Buckets:
        """For caches of `slots` and `rows`, requests with mostly `beams` beams, sequences of `length`, and up
        to `pictures` pictures of `picture_tokens` in an encode; an encoder has `encoder_room` positions for a
        picture and its prompt."""
        max_prompt = encoder_room - picture_tokens
        return cls(
            usual_beams=beams,
            slots=doubling(1, slots),
            rows=tuple(sorted({*(min(rows, beams * count) for count in doubling(1, slots)), rows})),
            beams=tuple(sorted({1, beams, max_beams})),
            lengths=doubling(MIN_BUCKET, length),
            encoder_lengths=tuple(
                picture_tokens + prompt for prompt in doubling(PROMPT_BUCKETS[0], max_prompt)
            ),
            pictures=doubling(1, pictures),
            prompts=(*(prompt for prompt in PROMPT_BUCKETS if prompt < max_prompt), max_prompt),
        )


def doubling(first: int, last: int) -> tuple[int, ...]:
    """`first`, twice that, and so on up to `last`, which ends the sizes; from eight times `first` on with one
    size halfway between two."""
    sizes, size = set(), first
    while size < last:
        sizes |= {size, size * 3 // 2} if size >= 8 * first else {size}
        size *= 2
    return (*sorted(size for size in sizes if size < last), last)


def round_up(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending `sizes` that is at least `size`. Raises `ValueError` where none is."""
    for candidate in sizes:
        if candidate >= size:
            return candidate
    raise ValueError(f"{size} fits none of the sizes {list(sizes)}")


def warn_once(what: str) -> Callable[[], None]:
    """A function that logs at its first call that no more shapes are captured."""

    @cache
    def warn() -> None:
        log.warning("%d shapes of %s are captured, the maximum; others run uncaptured", MAX_GRAPHS, what)

    return warn
