"""New pictures delay the answers in progress by no more than the encode budget."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise

import pytest
from fake_runner import FakeRunner, config, request
from waiting import PATIENCE_S

from florence.engine.device.beams.reference import Hypothesis
from florence.engine.loop import Engine
from florence.engine.sequence import SequenceState
from florence.engine.slots import SlotAllocator
from florence.errors import EngineError
from florence.runtime.futures import generate

BUDGET_S, STEP_S, STEPS = 0.25, 0.004, 25


class Device(FakeRunner):
    """A fake device whose work takes time; with `chunks_ahead` the host continues meanwhile. `ends`: the end
    of each step, and the requests in it."""

    def __init__(self, parts: Sequence[float], ahead: int) -> None:
        self.busy_until, self.sent_until = 0.0, 0.0
        self.ends: list[tuple[float, set[SequenceState]]] = []
        self.chunks_ahead, self.part_costs = ahead, parts
        self.steps_of: dict[SequenceState, int] = {}
        super().__init__()
        self.slots = SlotAllocator(64, 64)

    def work(self, seconds: float) -> float:
        """The time at which work that is sent now is done."""
        self.busy_until = max(self.busy_until, self.clock.now) + seconds
        return self.busy_until

    def encode_parts(self, sequences: Sequence[SequenceState]) -> Generator[None, None, int]:
        assert self.gate.wait(PATIENCE_S)
        for number, seconds in enumerate(self.part_costs):
            done = self.work(seconds * len(sequences))
            waited, self.sent_until = (self.sent_until, done) if self.chunks_ahead else (done, done)
            self.clock.now = max(self.clock.now, waited)
            if number < len(self.part_costs) - 1:
                yield
        for sequence in sequences:
            sequence.place(self.slots.take(1), 5, 10)
        self.batches.append(len(sequences))
        return len(sequences)

    def step(
        self, sequences: Sequence[SequenceState]
    ) -> list[tuple[SequenceState, Hypothesis | EngineError]]:
        done = self.work(STEP_S)
        waited = self.ends[-1][0] if self.chunks_ahead and self.ends else done  # with a delayed readback
        self.clock.now = max(self.clock.now, waited)
        self.ends.append((done, set(sequences)))
        for sequence in sequences:
            self.steps_of[sequence] = self.steps_of.get(sequence, 0) + 1
        ended = [each for each in sequences if self.steps_of[each] == 5 + each.request.prompt_ids[1] % STEPS]
        for sequence in ended:
            self.drop(sequence)
        return [(sequence, self.outcome(1)) for sequence in ended]


@pytest.mark.parametrize(
    ("parts", "ahead"),
    [((0.006, 0.0005), 1), ((0.013, 0.001), 1), ((0.02,) * 30, 0), ((0.07, 0.09, 0.05), 0)],
    ids=["a GPU", "a slow GPU", "a CPU", "few parts on a CPU"],
)
def test_no_step_waits_for_longer_than_the_encode_budget(parts: tuple[float, ...], ahead: int) -> None:
    """No step waits longer than the encode budget while many new pictures wait; the budget covers two parts
    of any encode."""
    device = Device(parts, ahead)
    limits = config(max_batch_size=64, max_encode_batch=16, encode_budget_ms=BUDGET_S * 1000)
    engine = Engine(device, limits, clock=device.clock)
    generate(engine, request(0)).result(PATIENCE_S)  # the first encode warms up, as in a service
    device.gate.clear()  # all requests come before the device goes on
    futures = [generate(engine, request(number)) for number in range(200)]
    device.gate.set()
    for future in futures:
        future.result(PATIENCE_S)
    engine.close()
    waits = [
        after - before
        for (before, some), (after, others) in pairwise(device.ends)
        if some & others  # a request is in both steps
    ]
    joined = [wait for wait in waits if wait > 2 * STEP_S]
    assert len(joined) > 5
    assert max(joined) <= BUDGET_S + 2 * STEP_S
