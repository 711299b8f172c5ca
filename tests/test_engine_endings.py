"""Requests that end without an answer, one of them or all: nobody is left waiting, and the device goes on."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress

import pytest
from fake_runner import PATIENCE_S, POISON_ENCODE, POISON_STEP, TOKENS, FakeRunner, hold, request

from florence.engine.loop import MOST_FAULTS, Engine
from florence.engine.request import Generation
from florence.engine.scheduler import BatchLimits
from florence.errors import Closed, DeadlineExceeded, EngineError


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
