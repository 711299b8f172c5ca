"""Every request gets one outcome, whatever happens to its neighbours; nothing is lost and nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from florence.engine.loop import Engine, TokenLimits
from florence.engine.reference import Hypothesis
from florence.engine.request import Generation, GenerationOptions, Request
from florence.engine.scheduler import BatchLimits
from florence.errors import Closed, DeadlineExceeded, EngineError, Overloaded, RequestError

TOKENS = TokenLimits(max_new_tokens=100, max_prompt_tokens=10)
OPTIONS = GenerationOptions(3, 20, 0, 3, True, 1.0)
PIXELS = np.zeros((32, 32, 3), np.uint8)
PATIENCE_S = 10.0
POISON_ENCODE, POISON_STEP = 666, 667
HELD = torch.ones(1)


def request(number: int = 1, **changes: object) -> Request:
    return replace(Request(PIXELS, (0, number, 2), OPTIONS), **changes)  # type: ignore[arg-type]


@dataclass
class FakeSearch:
    """Done after one step."""

    number: int
    done: bool = False

    def take(self, logits: torch.Tensor) -> None:
        if logits is HELD:
            return
        if self.number == POISON_STEP:
            raise EngineError("not numbers")
        self.done = True

    def best(self) -> Hypothesis:
        return Hypothesis([2, self.number, 2], [0.0, 0.0], 0.0)


class FakeRunner:
    """Answers a request with its own number; steps wait at a gate, which is open unless a test shuts it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.order: list[int] = []
        self.batches: list[int] = []
        self.broken = False

    def encode(self, requests: Sequence[Request]) -> list[SimpleNamespace]:
        numbers = [request.prompt_ids[1] for request in requests]
        if POISON_ENCODE in numbers:
            raise RuntimeError("a kernel failed")
        self.order += numbers
        return [
            SimpleNamespace(search=FakeSearch(number), picture_tokens=5, request=request)
            for number, request in zip(numbers, requests, strict=True)
        ]

    def step(self, decodings: Sequence[SimpleNamespace]) -> list[torch.Tensor]:
        """One step; while the gate is shut, a short one that decides nothing."""
        self.started.set()
        if self.broken:
            raise RuntimeError("the device is gone")
        if not self.gate.wait(0.001):
            return [HELD] * len(decodings)
        self.batches.append(len(decodings))
        return [torch.zeros(1)] * len(decodings)

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        return False


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    engine = Engine(runner, TOKENS, BatchLimits(max_batch_size=1, max_queue=4))  # type: ignore[arg-type]
    yield engine
    runner.gate.set()
    engine.close(drain_s=PATIENCE_S)


def hold(engine: Engine, runner: FakeRunner) -> Future[Generation]:
    """A request that occupies the device until the gate opens."""
    runner.gate.clear()
    future = engine.submit(request(0))
    assert runner.started.wait(PATIENCE_S)
    return future


def test_requests_are_answered_in_the_order_of_arrival(engine: Engine, runner: FakeRunner) -> None:
    first = hold(engine, runner)
    futures = [engine.submit(request(number)) for number in (1, 2, 3, 4)]
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in (first, *futures)] == [0, 1, 2, 3, 4]
    assert runner.order == [0, 1, 2, 3, 4]
    assert runner.batches == [1] * 5  # max_batch_size


def test_one_request_too_many_is_told_when_to_come_back(engine: Engine, runner: FakeRunner) -> None:
    hold(engine, runner)
    taken = [engine.submit(request(number)) for number in range(4)]
    with pytest.raises(Overloaded, match="4 requests are waiting") as error:
        engine.submit(request())
    assert error.value.retry_after_s >= 1
    runner.gate.set()
    assert len([future.result(PATIENCE_S) for future in taken]) == 4


@pytest.mark.parametrize(
    ("poison", "message"),
    [(POISON_ENCODE, "failed on the device: RuntimeError"), (POISON_STEP, "not numbers")],
)
def test_a_fault_fails_its_request_alone(runner: FakeRunner, poison: int, message: str) -> None:
    """Though it is encoded and decoded together with its neighbours."""
    engine = Engine(runner, TOKENS, BatchLimits(max_batch_size=8))  # type: ignore[arg-type]
    held = hold(engine, runner)
    good, bad, after = (engine.submit(request(number)) for number in (1, poison, 2))
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in (held, good, after)] == [0, 1, 2]
    with pytest.raises(EngineError, match=message):
        bad.result(PATIENCE_S)
    assert engine.ready
    engine.close()


def test_a_step_that_fails_fails_those_in_it_and_the_engine_goes_on(
    engine: Engine, runner: FakeRunner
) -> None:
    running = hold(engine, runner)
    runner.broken = True
    with pytest.raises(EngineError, match="failed on the device"):
        running.result(PATIENCE_S)
    runner.broken = False
    runner.gate.set()
    assert engine.submit(request(3)).result(PATIENCE_S).token_ids[1] == 3


def test_requests_share_steps_and_never_wait_for_each_other(runner: FakeRunner) -> None:
    """Those that come while one is decoded join it, and all end in the same step."""
    engine = Engine(runner, TOKENS, BatchLimits(max_batch_size=8, max_encode_batch=8))  # type: ignore[arg-type]
    futures = [hold(engine, runner), *(engine.submit(request(number)) for number in (1, 2, 3))]
    while len(runner.order) < 4:
        time.sleep(0.001)
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in futures] == [0, 1, 2, 3]
    assert runner.batches == [4]
    engine.close()


def test_cancelling_frees_the_device(engine: Engine, runner: FakeRunner) -> None:
    """Both the running request and one that waits; the gate stays shut, only the cancel can end the first."""
    running = hold(engine, runner)
    waiting, after = engine.submit(request(1)), engine.submit(request(2))
    assert waiting.cancel()
    assert running.cancel()
    deadline = time.monotonic() + PATIENCE_S
    while 2 not in runner.order and time.monotonic() < deadline:
        time.sleep(0.001)
    runner.gate.set()
    assert after.result(PATIENCE_S).token_ids[1] == 2


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(engine: Engine, runner: FakeRunner) -> None:
    runner.gate.clear()
    soon = time.monotonic() + 0.05
    futures = [engine.submit(request(number, deadline=soon)) for number in (1, 2)]
    for future in futures:
        with pytest.raises(DeadlineExceeded):
            future.result(PATIENCE_S)


def test_closing_finishes_what_came_and_takes_no_more(engine: Engine, runner: FakeRunner) -> None:
    first = hold(engine, runner)
    rest = [engine.submit(request(number)) for number in (1, 2)]
    closer = threading.Thread(target=engine.close)
    closer.start()
    while engine.ready:
        time.sleep(0.001)
    with pytest.raises(Closed):
        engine.submit(request())
    runner.gate.set()
    closer.join(PATIENCE_S)
    assert all(future.done() and future.exception() is None for future in (first, *rest))


def test_closing_with_a_time_limit_fails_what_is_left(engine: Engine, runner: FakeRunner) -> None:
    """The gate never opens: the running request and the waiting ones get `Closed`, and close returns."""
    futures = [hold(engine, runner), engine.submit(request(1))]
    engine.close(drain_s=0.05)
    done, _ = wait(futures, PATIENCE_S)
    assert len(done) == 2
    assert all(isinstance(future.exception(), Closed) for future in futures)
    engine.close()


def test_what_does_not_fit_the_model_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"11 tokens .* at most 10 fit"):
        engine.submit(request(prompt_ids=tuple(range(11))))
    with pytest.raises(RequestError, match="max_new_tokens is 101"):
        engine.submit(request(options=replace(OPTIONS, max_new_tokens=101)))
