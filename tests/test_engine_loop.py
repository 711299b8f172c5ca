"""Every request gets one outcome, whatever happens to its neighbours; nothing is lost and nothing hangs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from florence.engine.loop import MOST_FAULTS, Engine, TokenLimits
from florence.engine.observer import Ending, Observer
from florence.engine.places import Places
from florence.engine.reference import Hypothesis
from florence.engine.request import Generation, GenerationOptions, Request
from florence.engine.runner import Decoding
from florence.engine.scheduler import BatchLimits
from florence.errors import Closed, DeadlineExceeded, EngineError, Overloaded, RequestError

TOKENS = TokenLimits(max_new_tokens=100, max_prompt_tokens=10)
OPTIONS = GenerationOptions(3, 20, 0, 3, True, 1.0)
PIXELS = np.zeros((32, 32, 3), np.uint8)
PATIENCE_S = 10.0
POISON_ENCODE, POISON_STEP = 666, 667
SLOTS, ROWS = 8, 24


def request(number: int = 1, **changes: object) -> Request:
    return replace(Request(PIXELS, (0, number, 2), OPTIONS), **changes)  # type: ignore[arg-type]


class FakeRunner:
    """Answers a request with its own number; steps wait at a gate, which is open unless a test shuts it.

    `parts`: of one encode. `broken`: whether steps fail; `lost`: whether building anew fails too.
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
        self.broken = self.lost = False
        self.resets = 0
        self.reset()
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1
        if self.lost:
            raise RuntimeError("the device is gone")
        self.places = Places(SLOTS, ROWS)

    def prepare(self) -> None:
        pass

    def encode_parts(self, requests: Sequence[Request]) -> Generator[None, None, list[Decoding]]:
        numbers = [request.prompt_ids[1] for request in requests]
        for _ in range(self.parts - 1):
            self.events.append("part")
            time.sleep(self.part_s)
            yield
        if POISON_ENCODE in numbers:
            raise RuntimeError("a kernel failed")
        self.order += numbers
        self.features.misses += len(requests)
        return [Decoding(request, self.places.take(request.options.num_beams), 5, 10) for request in requests]

    def step(self, decodings: Sequence[Decoding]) -> list[tuple[Decoding, Hypothesis | EngineError]]:
        """One step, after which everybody is done; while the gate is shut, a short one that decides
        nothing."""
        self.started.set()
        self.events.append("step")
        if self.broken:
            raise RuntimeError("a kernel failed")
        if not self.gate.wait(0.001):
            return []
        self.batches.append(len(decodings))
        for decoding in decodings:
            self.drop(decoding)
        return [(decoding, self._outcome(decoding.request.prompt_ids[1])) for decoding in decodings]

    def drop(self, decoding: Decoding) -> None:
        self.places.give_back(decoding.place)

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        return False

    def _outcome(self, number: int) -> Hypothesis | EngineError:
        if number == POISON_STEP:
            return EngineError("not numbers")
        return Hypothesis([2, number, 2], [0.0, 0.0], 0.0)


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


def test_a_step_that_fails_fails_those_in_it_and_the_engine_goes_on_with_new_buffers(
    engine: Engine, runner: FakeRunner
) -> None:
    running = hold(engine, runner)
    waiting = engine.submit(request(2))
    old_places = runner.places
    runner.broken = True
    with pytest.raises(EngineError, match="failed on the device"):
        running.result(PATIENCE_S)
    runner.broken = False
    runner.gate.set()
    with suppress(EngineError):  # it may have been in a step that failed, before the device came back
        waiting.result(PATIENCE_S)
    assert ask_until_ready(engine, 3).result(PATIENCE_S).token_ids[1] == 3
    assert runner.places is not old_places
    assert engine.ready


def ask_until_ready(engine: Engine, number: int) -> Future[Generation]:
    """A request, as soon as the engine takes one."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return engine.submit(request(number))
        except Closed:
            assert time.monotonic() < end
            time.sleep(0.001)


@pytest.mark.parametrize("lost", [True, False])
def test_an_engine_that_cannot_recover_says_so_and_leaves_nobody_waiting(
    runner: FakeRunner, lost: bool
) -> None:
    """The device is gone, or step after step fails: all futures get an error, and the supervisor a call."""
    told = threading.Event()
    limits = BatchLimits(max_batch_size=1)
    engine = Engine(runner, TOKENS, limits, on_broken=told.set)  # type: ignore[arg-type]
    futures = [hold(engine, runner), *(engine.submit(request(number)) for number in range(1, 6))]
    runner.lost, runner.broken = lost, True
    assert told.wait(PATIENCE_S)
    assert all(isinstance(future.exception(PATIENCE_S), EngineError | Closed) for future in futures)
    assert runner.resets == (1 if lost else MOST_FAULTS)
    assert not engine.ready
    assert not engine.alive
    with pytest.raises(Closed):
        engine.submit(request())
    engine.close()


def test_a_wait_that_would_be_too_long_is_refused_at_once(runner: FakeRunner) -> None:
    """With the time to come back; the limit is on the time of waiting, not on the number of requests."""
    limits = BatchLimits(max_batch_size=1, max_latency_s=0.05)
    engine = Engine(runner, TOKENS, limits)  # type: ignore[arg-type]
    first = engine.submit(request(1))  # nothing is known yet: it is taken
    first.result(PATIENCE_S)
    hold(engine, runner)
    time.sleep(0.5)  # so long takes a request here
    runner.gate.set()
    engine.submit(request(2)).result(PATIENCE_S)
    hold(engine, runner)
    with pytest.raises(Overloaded, match=r"would wait for .* 0\.05 s are allowed") as error:
        engine.check_load(10)
    assert error.value.retry_after_s >= 1
    runner.gate.set()
    engine.close()


def test_an_encode_in_parts_lets_the_others_decode_between_them(runner: FakeRunner) -> None:
    """With no budget at all there is a step after each part."""
    runner.parts, runner.part_s = 4, 0.01
    limits = BatchLimits(max_batch_size=8, max_encode_batch=1, encode_budget_s=0.0001)
    engine = Engine(runner, TOKENS, limits)  # type: ignore[arg-type]
    running = hold(engine, runner)
    runner.events.clear()
    joining = engine.submit(request(1))
    while len(runner.order) < 2:
        time.sleep(0.001)
    runner.gate.set()
    assert {future.result(PATIENCE_S).token_ids[1] for future in (running, joining)} == {0, 1}
    between = "".join(runner.events).split("part")
    assert len(between) == 4  # three parts that yielded
    assert all("step" in steps for steps in between[1:])
    engine.close()


def test_an_encode_that_everybody_has_left_is_broken_off(runner: FakeRunner) -> None:
    runner.parts, runner.part_s = 1000, 0.005
    engine = Engine(runner, TOKENS, BatchLimits())  # type: ignore[arg-type]
    future = engine.submit(request(1))
    while "part" not in runner.events:
        time.sleep(0.001)
    assert future.cancel()
    runner.parts = 1
    assert engine.submit(request(2)).result(PATIENCE_S).token_ids[1] == 2
    assert runner.order == [2]
    engine.close()


def test_every_request_is_told_to_the_observer_once_with_its_end(runner: FakeRunner) -> None:
    observer = CountingObserver()
    limits = BatchLimits(max_batch_size=1, max_queue=3)
    engine = Engine(runner, TOKENS, limits, observer=observer)  # type: ignore[arg-type]
    hold(engine, runner)
    bad, gone = engine.submit(request(POISON_STEP)), engine.submit(request(2))
    late = engine.submit(request(3, deadline=time.monotonic()))
    while observer.endings[Ending.DEADLINE] == 0:
        time.sleep(0.001)
    gone.cancel()
    runner.gate.set()
    wait([bad, late], PATIENCE_S)
    with pytest.raises(Overloaded):
        engine.check_load(3)
    engine.close()
    assert observer.endings == {
        Ending.STOP: 1, Ending.FAULT: 1, Ending.CANCELLED: 1, Ending.DEADLINE: 1, Ending.REFUSED: 1,
    }  # fmt: skip
    assert observer.loads[-1] == (0, 0)


class CountingObserver(Observer):
    def __init__(self) -> None:
        self.endings: Counter[Ending] = Counter()
        self.loads: list[tuple[int, int]] = []

    def load(self, waiting: int, decoding: int) -> None:
        self.loads.append((waiting, decoding))

    def ended(self, ending: Ending, tokens: int = 0, queue_s: float = 0.0) -> None:
        self.endings[ending] += 1


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
