"""Work of fixed shapes, recorded once and replayed: CUDA graphs, and the buckets that make shapes few.

A decode step and an encode are hundreds of small kernels; a GPU waits for their launches more than it
computes. Recorded as a graph they are one launch. What is recorded reads and writes fixed buffers only, so
it can be run, and is tested, on a CPU as well: there `PlainRecorder` does it again in place of a replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from florence.engine.device.search import StepShape
from florence.engine.device.steps import Stage, StepSequence, dense_members, extent_of, seats_of, shape_of
from florence.engine.slots import Slot
from florence.model.decode import DecodeBatch

log = logging.getLogger(__name__)

SHORTEST = 64
"""Positions of the smallest bucket of lengths."""

PROMPTS = (16, 32, 64, 256)
"""Tokens of the prompts that encodes are recorded for, beside the longest: up to 14 have the sentences of the
tasks, 24 to 27 those with a region, about 40 those with a sentence of the caller's."""

MOST_PREPARED = 256
"""Positions of the longest sequences whose steps are recorded at the start; others when they first come."""

MOST_RECORDED = 256
"""Shapes of steps, and of encodes, that are recorded; each keeps memory of the device until a reset."""

Work = Callable[[], Sequence[Tensor]]
Replay = Callable[[], None]


class Recorder(Protocol):
    """Makes a replay of work that reads and writes fixed buffers, without doing it; its results lie in fixed
    tensors too, which may be there only after the first replay. After `reset` nothing that was recorded is
    replayed any more."""

    def record(self, work: Work) -> tuple[Replay, Sequence[Tensor]]: ...

    def reset(self) -> None: ...


class CudaRecorder:
    """Records CUDA graphs on one device; all share one pool of memory, so the largest should come first."""

    def __init__(self, device: torch.device) -> None:
        # Its own: torch's for recordings is one of whichever device came first in this process.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.reset()

    def reset(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # one whose graphs are all gone takes no new ones

    def record(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may call CUDA meanwhile, for instance an engine of another device.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            results = work()
        return graph.replay, results


class PlainRecorder:
    """Does the work at each replay: the same buffers and shapes without a graph."""

    def record(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
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


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes that shapes are rounded up to, each list ascending and ending with the most there can be.

    `usual_beams`: how many most requests have.
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
        slots: int,
        rows: int,
        beams: int,
        most_beams: int,
        length: int,
        picture_tokens: int,
        room: int,
        pictures: int,
    ) -> Buckets:
        """For caches of `slots` and `rows`, requests with mostly `beams` beams, sequences of `length`, and
        `pictures` at once of `picture_tokens` in an encoder with `room` for them and a prompt."""
        most_prompt = room - picture_tokens
        return cls(
            usual_beams=beams,
            slots=doubling(1, slots),
            rows=tuple(sorted({*(min(rows, beams * count) for count in doubling(1, slots)), rows})),
            beams=tuple(sorted({1, beams, most_beams})),
            lengths=doubling(SHORTEST, length),
            encoder_lengths=tuple(picture_tokens + prompt for prompt in doubling(PROMPTS[0], most_prompt)),
            pictures=doubling(1, pictures),
            prompts=(*(prompt for prompt in PROMPTS if prompt < most_prompt), most_prompt),
        )


def doubling(first: int, last: int) -> tuple[int, ...]:
    """`first`, twice that, and so on below `last`, from eight times on with one size halfway; then `last`."""
    sizes, size = set(), first
    while size < last:
        sizes |= {size, size * 3 // 2} if size >= 8 * first else {size}
        size *= 2
    return (*sorted(size for size in sizes if size < last), last)


def round_up(size: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds `size`. Raises `ValueError` where none does."""
    for candidate in sizes:
        if candidate >= size:
            return candidate
    raise ValueError(f"{size} fits none of the sizes {list(sizes)}")


def warn_once(what: str) -> Callable[[], None]:
    """Says at its first call that no more shapes are recorded."""

    @cache
    def warn() -> None:
        log.warning(
            "%d shapes of %s are recorded, as many as may; others run unrecorded", MOST_RECORDED, what
        )

    return warn


@dataclass(frozen=True, slots=True)
class DummySequence:
    """A place in a step, whoever is in it."""

    slot: Slot
    encoder_length: int
    steps: int


@dataclass(frozen=True, slots=True)
class _Key:
    slots: int
    rows: int
    shape: StepShape


class BucketSteps:
    """Steps of few shapes, each recorded the second time that it comes: the first time warms it up. Shapes
    beyond `MOST_RECORDED` run as they are."""

    def __init__(self, stage: Stage, buckets: Buckets, recorder: Recorder) -> None:
        self._stage, self._buckets, self._recorder = stage, buckets, recorder
        self._members: dict[_Key, DecodeBatch] = {}
        self._replays: dict[_Key, Replay] = {}
        self._present: tuple[_Key, list[tuple[Slot, int]]] | None = None
        self._full = warn_once("steps")

    def run(self, sequences: Sequence[StepSequence]) -> None:
        key = self._key(sequences)
        if key not in self._members and len(self._members) >= MOST_RECORDED:
            self._full()
            self._stage.dense_step(self._seats(key, sequences).to(self._stage.state.device), key.shape)
            return
        seats = seats_of(sequences)
        if self._present != (key, seats):  # somebody came or went: others read and write from now on
            self._seat(key, sequences)
            self._present = key, seats
        if key in self._replays:
            self._replays[key]()
            return
        members = self._members[key]
        self._stage.dense_step(members, key.shape)

        def work() -> Sequence[Tensor]:
            self._stage.dense_step(members, key.shape)
            return ()

        self._replays[key] = self._later(key, work)

    def prepare(self, encoder_length: int) -> None:
        """Record the shapes of requests with the usual number of beams and short sequences, largest first.

        Nobody is in a slot yet: the steps move no search.
        """
        beams = self._buckets.usual_beams
        for slots in reversed(self._buckets.slots):
            for length in (length for length in reversed(self._buckets.lengths) if length <= MOST_PREPARED):
                rows = range(0, min(slots * beams, self._buckets.rows[-1]) // beams * beams, beams)
                seats = [
                    DummySequence(Slot(slot, tuple(range(row, row + beams))), encoder_length + 1, length - 2)
                    for slot, row in enumerate(rows)
                ]
                self.run(seats)
                self.run(seats)

    def _later(self, key: _Key, work: Work) -> Replay:
        """A replay that records at its first call."""

        def first() -> None:
            replay, _ = self._recorder.record(work)
            self._replays[key] = replay
            replay()

        return first

    def _key(self, sequences: Sequence[StepSequence]) -> _Key:
        sizes, shape = self._buckets, shape_of(sequences, self._stage.state.places)
        slots, rows = extent_of(sequences)
        return _Key(
            round_up(slots, sizes.slots),
            round_up(rows, sizes.rows),
            StepShape(
                beams=round_up(shape.beams, sizes.beams),
                length=round_up(shape.length, sizes.lengths),
                greedy=True,
                encoder_length=round_up(shape.encoder_length, sizes.encoder_lengths),
            ),
        )

    def _seat(self, key: _Key, sequences: Sequence[StepSequence]) -> None:
        """Write who takes part into the fixed buffers of this shape."""
        members = self._seats(key, sequences)
        if key in self._members:
            self._members[key].copy_(members)
        else:
            self._members[key] = members.to(self._stage.state.device)

    def _seats(self, key: _Key, sequences: Sequence[StepSequence]) -> DecodeBatch:
        return dense_members(sequences, key.slots, key.rows, key.shape.beams)
