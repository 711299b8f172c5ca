"""A fake device for the engine's tests: it answers at once, when a gate opens, or with a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from waiting import PATIENCE_S

from florence.engine.config import EngineConfig
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.loop import Engine
from florence.engine.request import Generation, GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.engine.slots import SlotAllocator
from florence.errors import EngineError
from florence.runtime.futures import generate

OPTIONS = GenerationOptions(3, 20, 0, 3, True, 1.0)
PIXELS = np.zeros((32, 32, 3), np.uint8)
POISON_ENCODE, POISON_STEP = 666, 667
SLOTS, ROWS = 8, 24


def config(**changes: Any) -> EngineConfig:
    """An engine's configuration with room for short requests, with these changes."""
    return EngineConfig(**{"max_new_tokens": 100, "max_prompt_tokens": 10, **changes})


def request(number: int = 1, **changes: object) -> Request:
    """A request whose prompt holds this number."""
    return replace(Request(PIXELS, (0, number, 2), OPTIONS), **changes)  # type: ignore[arg-type]


@dataclass
class Clock:
    """A clock that stands still unless a test moves it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """A fake device that answers a request with its own number; steps wait at a gate, which is open by
    default.

    `clock`: moves by `part_s` with each part of an encode. `parts`: the number of parts of one encode; each
    waits for one of the `permits`, if there are any. `before`: called before the engine takes requests.
    `broken`: steps fail; `blind`: encodes fail; `lost`: `prepare` and `reset` fail.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.order: list[int] = []
        self.batches: list[int] = []
        self.events: list[str] = []
        self.parts = 1
        self.before: Callable[[], object] = bool
        self.part_s = 0.0
        self.clock = Clock()
        self.permits: threading.Semaphore | None = None
        self.broken = self.blind = self.lost = False
        self.resets = 0
        self.reset()
        self.resets = 0

    chunks_ahead = 0

    def reset(self) -> None:
        """Free all slots, or fail if the device is lost."""
        self.resets += 1
        if self.lost:
            raise RuntimeError("the device is gone")
        self.slots = SlotAllocator(SLOTS, ROWS)

    def prepare(self, threads: int | None = None) -> None:
        """Call `before`, and fail if the device is lost."""
        self.before()
        if self.lost:
            raise RuntimeError("the device is gone")

    def fits(self, requests: Iterable[Request]) -> int:
        """The number of requests for which there are slots."""
        return self.slots.fits(each.options.num_beams for each in requests)

    def rest(self) -> None:
        """Do nothing."""
        pass

    def encode_parts(self, sequences: Sequence[SequenceState]) -> Generator[None, None, int]:
        """Encode in parts; the last one gives the sequences their slots."""
        numbers = [sequence.request.prompt_ids[1] for sequence in sequences]
        for _ in range(self.parts - 1):
            self.events.append("part")
            if self.permits is not None:
                assert self.permits.acquire(timeout=PATIENCE_S)
            self.clock.now += self.part_s
            yield
        if self.blind or POISON_ENCODE in numbers:
            raise RuntimeError("a kernel failed")
        self.order += numbers
        for sequence in sequences:
            sequence.place(self.slots.take(sequence.request.options.num_beams), 5, 10)
        return len(sequences)

    def step(
        self, sequences: Sequence[SequenceState]
    ) -> list[tuple[SequenceState, Hypothesis | EngineError]]:
        """Run one step, which finishes all requests; while the gate is shut, it is short and
        finishes none."""
        self.started.set()
        self.events.append("step")
        if self.broken:
            raise RuntimeError("a kernel failed")
        if not self.gate.wait(0.001):
            return []
        self.batches.append(len(sequences))
        for sequence in sequences:
            self.drop(sequence)
            if sequence.request.on_token is not None:
                sequence.request.on_token(sequence.request.prompt_ids[1])
        return [(sequence, self.outcome(sequence.request.prompt_ids[1])) for sequence in sequences]

    def drop(self, sequence: SequenceState) -> None:
        """Free the sequence's slot."""
        self.slots.give_back(sequence.slot)

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        """False: no answer is cut."""
        return False

    def outcome(self, number: int) -> Hypothesis | EngineError:
        """The answer with this number, or an error for POISON_STEP."""
        if number == POISON_STEP:
            return EngineError("not numbers")
        return Hypothesis([2, number, 2], [0.0, 0.0], 0.0)


def hold(engine: Engine, runner: FakeRunner) -> Future[Generation]:
    """Send a request that occupies the device until the gate opens."""
    runner.gate.clear()
    runner.started.clear()
    future = generate(engine, request(0))
    assert runner.started.wait(PATIENCE_S)
    return future
