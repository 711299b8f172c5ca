"""Requests that end without an answer, one or all: each gets an outcome, and the device continues."""

from __future__ import annotations

import gc
import logging
import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from weakref import ref

import numpy as np
import pytest
from fake_runner import POISON_ENCODE, POISON_STEP, SLOTS, FakeRunner, config, hold, request
from waiting import PATIENCE_S, wait_until

from florence.engine.loop import MAX_FAULTS, Engine
from florence.engine.observer import EngineSnapshot, Observer
from florence.engine.request import Generation
from florence.errors import Closed, DeadlineExceeded, EngineError, Overloaded
from florence.runtime.futures import generate


@pytest.mark.parametrize(
    ("poison", "message"),
    [(POISON_ENCODE, "failed on the device: RuntimeError"), (POISON_STEP, "not numbers")],
)
def test_a_fault_fails_its_request_alone(runner: FakeRunner, poison: int, message: str) -> None:
    """A fault fails only its own request, although others are encoded and decoded with it."""
    engine = Engine(runner, config(max_batch_size=8))
    held = hold(engine, runner)
    good, bad, after = (generate(engine, request(number)) for number in (1, poison, 2))
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in (held, good, after)] == [0, 1, 2]
    with pytest.raises(EngineError, match=message):
        bad.result(PATIENCE_S)
    assert engine.ready
    engine.close()


def test_a_step_that_fails_fails_those_in_it_and_the_engine_goes_on_with_new_buffers(
    engine: Engine, runner: FakeRunner
) -> None:
    """A failed step fails its requests, and the engine continues with new buffers."""
    running = hold(engine, runner)
    waiting = generate(engine, request(2))
    old_places = runner.slots
    runner.broken = True
    with pytest.raises(EngineError, match="failed on the device"):
        running.result(PATIENCE_S)
    runner.broken = False
    runner.gate.set()
    with suppress(EngineError):  # it may have joined a failed step before the device was restored
        waiting.result(PATIENCE_S)
    assert ask_until_ready(engine, 3).result(PATIENCE_S).token_ids[1] == 3
    assert runner.slots is not old_places
    assert engine.ready


def ask_until_ready(engine: Engine, number: int) -> Future[Generation]:
    """Send a request as soon as the engine accepts one."""
    taken: list[Future[Generation]] = []

    def ask() -> bool:
        with suppress(Closed):
            taken.append(generate(engine, request(number)))
        return bool(taken)

    wait_until(ask)
    return taken[0]


@pytest.mark.parametrize("lost", [True, False])
def test_an_engine_that_cannot_recover_fails_all_requests_and_says_so(runner: FakeRunner, lost: bool) -> None:
    """If the device is lost, or step after step fails, all requests fail and `on_broken` is called."""
    called = threading.Event()
    limits = config(max_batch_size=1)
    engine = Engine(runner, limits, on_broken=called.set)
    futures = [hold(engine, runner), *(generate(engine, request(number)) for number in range(1, 6))]
    runner.lost, runner.broken = lost, True
    assert called.wait(PATIENCE_S)
    assert all(isinstance(future.exception(PATIENCE_S), EngineError | Closed) for future in futures)
    assert runner.resets == (1 if lost else MAX_FAULTS - 1)
    assert not engine.ready
    assert not engine.alive
    with pytest.raises(Closed):
        generate(engine, request())
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("step", [False, True])
def test_a_failed_request_is_let_go_though_its_error_is_kept(
    runner: FakeRunner, caplog: pytest.LogCaptureFixture, step: bool
) -> None:
    """A failed request's memory is freed without the garbage collector, although its error is kept."""
    caplog.set_level(logging.CRITICAL, "florence.engine.loop")  # pytest's log would keep tracebacks
    engine = Engine(runner, config())
    gc.collect()
    gc.disable()
    try:
        pixels = np.zeros((32, 32, 3), np.uint8)
        left = ref(pixels)
        runner.broken = step
        future = generate(engine, request(1 if step else POISON_ENCODE, pixels=pixels))
        del pixels
        error = future.exception(PATIENCE_S)
        assert isinstance(error, EngineError)
        wait_until(lambda: left() is None)
        assert isinstance(error.__cause__, RuntimeError)
    finally:
        gc.enable()
        engine.close()


def test_on_broken_may_close_the_engine(runner: FakeRunner) -> None:
    """`on_broken` may close the engine."""
    closed = threading.Event()

    def close() -> None:
        engine.close()
        closed.set()

    engine = Engine(runner, config(), on_broken=close)
    running = hold(engine, runner)
    runner.lost = runner.broken = True
    assert isinstance(running.exception(PATIENCE_S), EngineError)
    assert closed.wait(PATIENCE_S)
    engine.close()
    assert not engine.alive


def test_encodes_that_always_fail_break_the_engine(runner: FakeRunner) -> None:
    """Encodes that always fail lead to a limited number of resets, and then the engine reports that it is
    broken."""
    called = threading.Event()
    engine = Engine(runner, config(), on_broken=called.set)
    runner.blind = True
    for number in range(MAX_FAULTS**2):
        assert not called.is_set()
        with pytest.raises(EngineError, match="failed on the device"):
            ask_until_ready(engine, number).result(PATIENCE_S)
    assert called.wait(PATIENCE_S)
    assert runner.resets == MAX_FAULTS - 1
    assert not engine.alive
    with pytest.raises(Closed) as refusal:
        generate(engine, request())
    assert str(refusal.value.__cause__) == "a kernel failed"
    engine.close()


def test_bad_requests_between_good_ones_leave_the_engine_alone(runner: FakeRunner) -> None:
    """Any number of bad requests between good ones cause no reset."""
    engine = Engine(runner, config())
    for _ in range(MAX_FAULTS**2):
        for _ in range(MAX_FAULTS - 1):
            with pytest.raises(EngineError):
                generate(engine, request(POISON_ENCODE)).result(PATIENCE_S)
        assert generate(engine, request(1)).result(PATIENCE_S).token_ids[1] == 1
    assert runner.resets == 0
    engine.close()


def test_a_bad_request_does_not_hold_up_those_that_are_decoded(runner: FakeRunner) -> None:
    """After a failed encode its requests are encoded one by one, with decode steps between them."""
    limits = config(max_batch_size=8, max_encode_batch=8, encode_budget_ms=0.1)
    runner.parts, runner.part_s = 2, 1.0
    engine = Engine(runner, limits, clock=runner.clock)
    held = hold(engine, runner)
    runner.events.clear()
    futures = [generate(engine, request(number)) for number in (1, POISON_ENCODE, 2, 3)]
    with pytest.raises(EngineError):
        futures[1].result(PATIENCE_S)
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in (held, futures[0], *futures[2:])] == [
        0,
        1,
        2,
        3,
    ]
    assert all("step" in steps for steps in "".join(runner.events).split("part")[1:])
    engine.close()


def test_one_of_a_batch_that_expires_while_it_is_encoded_fails_at_once(runner: FakeRunner) -> None:
    """A request that expires during its encode fails at once and never takes a slot, while the others' encode
    continues."""
    limits = config(max_batch_size=8, max_encode_batch=8)
    engine = Engine(runner, limits, clock=runner.clock)
    held = hold(engine, runner)
    runner.parts, runner.permits = 3, threading.Semaphore(0)
    late, other = generate(engine, request(1, deadline=1.0)), generate(engine, request(2))
    wait_until(lambda: "part" in runner.events)
    runner.clock.now = 2.0
    runner.permits.release()
    with pytest.raises(DeadlineExceeded):
        late.result(PATIENCE_S)
    assert not other.done()
    assert runner.order == [0]  # the encode has not finished
    runner.permits.release(9)
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in (held, other)] == [0, 2]
    assert runner.slots.fits([3] * 20) == SLOTS
    engine.close()


class BrokenObserver(Observer):
    """An observer that fails at the first encode."""

    def encoded(self, requests: int, pictures: int, seconds: float) -> None:
        raise RuntimeError("no more numbers")


@pytest.mark.parametrize("cause", ["the device is gone", "no more numbers"])
def test_an_engine_that_ends_unforeseen_says_why_and_fails_all_requests(
    runner: FakeRunner, cause: str
) -> None:
    """An engine that can't start, or fails unexpectedly, fails all requests with the cause."""
    called = threading.Event()
    runner.lost = cause == "the device is gone"
    engine = Engine(runner, config(), observer=BrokenObserver(), on_broken=called.set)
    with pytest.raises(Closed) as error:
        generate(engine, request()).result(PATIENCE_S)
    assert str(error.value.__cause__) == cause
    assert called.wait(PATIENCE_S)
    assert not engine.alive
    engine.close()


def test_cancelling_frees_the_device(engine: Engine, runner: FakeRunner) -> None:
    """Cancelling ends the running request and a waiting one; the gate stays shut, so only the cancellation
    can end the first."""
    running = hold(engine, runner)
    waiting, after = generate(engine, request(1)), generate(engine, request(2))
    assert waiting.cancel()
    assert running.cancel()
    wait_until(lambda: 2 in runner.order)
    runner.gate.set()
    assert after.result(PATIENCE_S).token_ids[1] == 2


def test_a_request_that_waits_and_is_cancelled_leaves_the_queue(engine: Engine, runner: FakeRunner) -> None:
    """A cancelled waiting request leaves the queue at once, so a full queue accepts another."""
    hold(engine, runner)
    waiting = [generate(engine, request(number)) for number in range(4)]
    with pytest.raises(Overloaded):
        generate(engine, request())
    assert waiting[1].cancel()
    wait_until(lambda: engine.snapshot().waiting == 3)
    added = generate(engine, request(9))
    runner.gate.set()
    assert added.result(PATIENCE_S).token_ids[1] == 9


class BlockingObserver(Observer):
    """An observer that stops the engine where it reports its load."""

    def __init__(self) -> None:
        self.blocking, self.blocked, self.released = (threading.Event() for _ in range(3))

    def load(self, *counts: int) -> None:
        if self.blocking.is_set():
            self.blocked.set()
            assert self.released.wait(PATIENCE_S)


def test_cancelling_waits_for_no_lock_of_the_engine(runner: FakeRunner) -> None:
    """Cancelling waits for no lock of the engine, since the caller may hold locks that the engine's thread
    needs."""
    observer = BlockingObserver()
    engine = Engine(runner, config(max_batch_size=1), observer=observer)
    held = hold(engine, runner)
    futures = [held, generate(engine, request(1))]
    observer.blocking.set()
    assert observer.blocked.wait(PATIENCE_S)
    canceller = threading.Thread(target=lambda: [future.cancel() for future in futures], daemon=True)
    canceller.start()
    canceller.join(PATIENCE_S)
    assert not canceller.is_alive()
    observer.released.set()
    runner.gate.set()
    engine.close()
    assert runner.order == [0]


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(engine: Engine, runner: FakeRunner) -> None:
    """A deadline ends a running request and a waiting one."""
    runner.gate.clear()
    futures = [generate(engine, request(number, deadline=1.0)) for number in (1, 2)]
    wait_until(lambda: engine.snapshot() == EngineSnapshot(waiting=1, encoding=0, decoding=1))
    runner.clock.now = 2.0
    for future in futures:
        with pytest.raises(DeadlineExceeded):
            future.result(PATIENCE_S)


def test_closing_finishes_what_came_and_takes_no_more(engine: Engine, runner: FakeRunner) -> None:
    """Closing finishes the accepted requests and refuses new ones."""
    first = hold(engine, runner)
    rest = [generate(engine, request(number)) for number in (1, 2)]
    closer = threading.Thread(target=engine.close)
    closer.start()
    wait_until(lambda: not engine.ready)
    with pytest.raises(Closed):
        generate(engine, request())
    runner.gate.set()
    closer.join(PATIENCE_S)
    assert all(future.done() and future.exception() is None for future in (first, *rest))


def test_closing_with_a_time_limit_fails_what_is_left(engine: Engine, runner: FakeRunner) -> None:
    """Closing with a time limit fails the remaining requests with `Closed`, although the gate never opens."""
    futures = [hold(engine, runner), generate(engine, request(1))]
    engine.close(drain_s=0.05)
    done, _ = wait(futures, PATIENCE_S)
    assert len(done) == 2
    assert all(isinstance(future.exception(), Closed) for future in futures)
    engine.close()
