"""A device that the engine's tests command: it answers at once, at a gate's opening, or with a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from florence.engine.config import EngineConfig
from florence.engine.device.reference import Hypothesis
from florence.engine.loop import Engine
from florence.engine.request import Generation, GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.engine.slots import SlotAllocator
from florence.errors import EngineError

OPTIONS = GenerationOptions(3, 20, 0, 3, True, 1.0)
PIXELS = np.zeros((32, 32, 3), np.uint8)
PATIENCE_S = 10.0
POISON_ENCODE, POISON_STEP = 666, 667
SLOTS, ROWS = 8, 24


def config(**changes: Any) -> EngineConfig:
    """An engine's configuration, with room for short requests unless it says otherwise."""
    return EngineConfig(**{"max_new_tokens": 100, "max_prompt_tokens": 10, **changes})


def request(number: int = 1, **changes: object) -> Request:
    return replace(Request(PIXELS, (0, number, 2), OPTIONS), **changes)  # type: ignore[arg-type]


class FakeRunner:
    """Answers a request with its own number; steps wait at a gate, which is open unless a test shuts it.

    `parts`: of one encode. `broken`: whether steps fail, `blind`: whether encodes do; `lost`: whether
    preparing and building anew fail.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.features = SimpleNamespace(misses=0)
        self.order: list[int] = []
        self.batches: list[int] = []
        self.events: list[str] = []
        self.parts = 1
        self.part_s = 0.0
        self.broken = self.blind = self.lost = False
        self.resets = 0
        self.reset()
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1
        if self.lost:
            raise RuntimeError("the device is gone")
        self.slots = SlotAllocator(SLOTS, ROWS)

    def prepare(self) -> None:
        if self.lost:
            raise RuntimeError("the device is gone")

    def encode_parts(self, requests: Sequence[Request]) -> Generator[None, None, list[SequenceState]]:
        numbers = [request.prompt_ids[1] for request in requests]
        for _ in range(self.parts - 1):
            self.events.append("part")
            time.sleep(self.part_s)
            yield
        if self.blind or POISON_ENCODE in numbers:
            raise RuntimeError("a kernel failed")
        self.order += numbers
        self.features.misses += len(requests)
        return [
            SequenceState(request, self.slots.take(request.options.num_beams), 5, 10) for request in requests
        ]

    def step(
        self, sequences: Sequence[SequenceState]
    ) -> list[tuple[SequenceState, Hypothesis | EngineError]]:
        """One step, after which everybody is done; while the gate is shut, a short one that decides
        nothing."""
        self.started.set()
        self.events.append("step")
        if self.broken:
            raise RuntimeError("a kernel failed")
        if not self.gate.wait(0.001):
            return []
        self.batches.append(len(sequences))
        for sequence in sequences:
            self.drop(sequence)
        return [(sequence, self._outcome(sequence.request.prompt_ids[1])) for sequence in sequences]

    def drop(self, sequence: SequenceState) -> None:
        self.slots.give_back(sequence.slot)

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        return False

    def _outcome(self, number: int) -> Hypothesis | EngineError:
        if number == POISON_STEP:
            return EngineError("not numbers")
        return Hypothesis([2, number, 2], [0.0, 0.0], 0.0)


def hold(engine: Engine, runner: FakeRunner) -> Future[Generation]:
    """A request that occupies the device until the gate opens."""
    runner.gate.clear()
    future = engine.submit(request(0))
    assert runner.started.wait(PATIENCE_S)
    return future
