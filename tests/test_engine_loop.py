"""Requests are taken in order and share the device's steps; each gets one outcome; too many are refused."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import wait
from dataclasses import replace

import pytest
from fake_runner import OPTIONS, POISON_ENCODE, POISON_STEP, FakeRunner, config, hold, request
from waiting import PATIENCE_S, wait_until

from florence.engine.loop import Engine
from florence.engine.observer import FinishReason, Observer
from florence.errors import Overloaded, RequestError
from florence.runtime.futures import generate


def test_requests_are_answered_in_the_order_of_arrival(engine: Engine, runner: FakeRunner) -> None:
    """Requests are answered in the order of arrival."""
    first = hold(engine, runner)
    futures = [generate(engine, request(number)) for number in (1, 2, 3, 4)]
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in (first, *futures)] == [0, 1, 2, 3, 4]
    assert runner.order == [0, 1, 2, 3, 4]
    assert runner.batches == [1] * 5  # max_batch_size


def test_one_request_too_many_is_refused_with_a_time_to_retry(engine: Engine, runner: FakeRunner) -> None:
    """A request beyond the queue's limit is refused with a time to retry."""
    hold(engine, runner)
    taken = [generate(engine, request(number)) for number in range(4)]
    with pytest.raises(Overloaded, match="4 requests are waiting") as error:
        generate(engine, request())
    assert error.value.retry_after_s >= 1
    runner.gate.set()
    assert len([future.result(PATIENCE_S) for future in taken]) == 4


def test_a_wait_that_would_be_too_long_is_refused_at_once(runner: FakeRunner) -> None:
    """A request whose estimated wait exceeds the limit is refused at once with a time to retry."""
    limits = config(max_batch_size=1, max_latency_ms=1000)
    engine = Engine(runner, limits, clock=runner.clock)
    first = generate(engine, request(1))  # there is no estimate yet, so it is accepted
    first.result(PATIENCE_S)
    hold(engine, runner)
    steps = len(runner.events)
    wait_until(lambda: len(runner.events) > steps + 1)  # the estimate has begun
    runner.clock.now += 5.0  # the duration of a request
    runner.gate.set()
    generate(engine, request(2)).result(PATIENCE_S)
    hold(engine, runner)
    with pytest.raises(Overloaded, match=r"would wait for .* 1 s are allowed") as error:
        engine.check_load(10)
    assert error.value.retry_after_s >= 1
    runner.gate.set()
    engine.close()


def test_what_encoding_takes_counts_for_the_wait(runner: FakeRunner) -> None:
    """Encoding counts for the estimated wait, even if requests come one after the other."""
    runner.parts, runner.part_s = 4, 0.05
    limits = config(max_batch_size=1, max_latency_ms=1000)
    engine = Engine(runner, limits, clock=runner.clock)
    for number in range(3):
        generate(engine, request(number)).result(PATIENCE_S)
    engine.check_load(2)
    with pytest.raises(Overloaded, match=r"would wait for"):
        engine.check_load(20)  # 0.15 s each
    engine.close()


def test_an_encode_in_parts_lets_the_others_decode_between_them(runner: FakeRunner) -> None:
    """With hardly any budget there is a decode step after each part of an encode."""
    runner.parts, runner.part_s = 4, 0.01
    limits = config(max_batch_size=8, max_encode_batch=1, encode_budget_ms=0.1)
    engine = Engine(runner, limits, clock=runner.clock)
    running = hold(engine, runner)
    runner.events.clear()
    joining = generate(engine, request(1))
    wait_until(lambda: len(runner.order) >= 2)
    runner.gate.set()
    assert {future.result(PATIENCE_S).token_ids[1] for future in (running, joining)} == {0, 1}
    between = "".join(runner.events).split("part")
    assert len(between) == 4  # three parts that yielded
    assert all("step" in steps for steps in between[1:])
    engine.close()


def test_an_encode_whose_requests_are_all_cancelled_is_broken_off(runner: FakeRunner) -> None:
    """An encode whose requests are all cancelled is stopped."""
    runner.parts, runner.permits = 1000, threading.Semaphore(0)
    engine = Engine(runner, config(), clock=runner.clock)
    future = generate(engine, request(1))
    wait_until(lambda: "part" in runner.events)
    assert future.cancel()
    runner.parts = 1
    runner.permits.release()
    assert generate(engine, request(2)).result(PATIENCE_S).token_ids[1] == 2
    assert runner.order == [2]
    engine.close()


def test_every_request_is_reported_to_the_observer_once_with_its_end(runner: FakeRunner) -> None:
    """Every request is reported to the observer once, with its ending."""
    observer = CountingObserver()
    limits = config(max_batch_size=1, max_queue=3)
    engine = Engine(runner, limits, observer=observer, clock=runner.clock)
    hold(engine, runner)
    bad, gone = generate(engine, request(POISON_STEP)), generate(engine, request(2))
    late = generate(engine, request(3, deadline=-1.0))
    wait_until(lambda: observer.endings[FinishReason.DEADLINE] > 0)
    gone.cancel()
    runner.gate.set()
    wait([bad, late], PATIENCE_S)
    with pytest.raises(Overloaded):
        engine.check_load(3)
    engine.close()
    assert observer.endings == {
        FinishReason.STOP: 1,
        FinishReason.FAULT: 1,
        FinishReason.CANCELLED: 1,
        FinishReason.DEADLINE: 1,
        FinishReason.REFUSED: 1,
    }
    assert observer.loads[-1] == (0, 0, 0)


@pytest.mark.parametrize("third", [2, POISON_ENCODE])
def test_a_request_is_in_one_of_the_gauges_from_its_arrival_to_its_end(
    runner: FakeRunner, third: int
) -> None:
    """A request is counted in exactly one gauge from its arrival to its end, even if it is encoded alone
    after a failed batch."""
    observer, all_came = CountingObserver(), threading.Event()
    runner.before = all_came.wait
    runner.gate.clear()
    runner.parts, runner.part_s = 3, 1.0
    limits = config(max_batch_size=4, max_encode_batch=4, encode_budget_ms=0.1)
    engine = Engine(runner, limits, observer=observer, clock=runner.clock)
    futures = [generate(engine, request(number)) for number in (0, 1, third, 3, 4)]
    all_came.set()
    wait_until(lambda: len(runner.order) == 4)
    runner.gate.set()
    wait(futures, PATIENCE_S)
    engine.close()
    sums = [sum(load) for load in observer.loads]
    assert sums[0] == 5
    assert sums == sorted(sums, reverse=True)  # a request that changes gauges is always in one
    assert (1, 4, 0) in observer.loads
    assert observer.loads[-1] == (0, 0, 0)


class CountingObserver(Observer):
    """An observer that records loads and counts endings."""

    def __init__(self) -> None:
        self.endings: Counter[FinishReason] = Counter()
        self.loads: list[tuple[int, int, int]] = []

    def load(self, waiting: int, encoding: int, decoding: int) -> None:
        self.loads.append((waiting, encoding, decoding))

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        self.endings[ending] += 1


def test_requests_share_steps_and_do_not_wait_for_each_other(runner: FakeRunner) -> None:
    """Requests that arrive while another is decoded join it, and all end in the same step."""
    engine = Engine(runner, config(max_batch_size=8, max_encode_batch=8))
    futures = [hold(engine, runner), *(generate(engine, request(number)) for number in (1, 2, 3))]
    wait_until(lambda: len(runner.order) >= 4)
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in futures] == [0, 1, 2, 3]
    assert runner.batches == [4]
    engine.close()


def test_what_does_not_fit_the_model_is_refused_at_once(engine: Engine) -> None:
    """A prompt or an answer that is too long for the model is refused at once."""
    with pytest.raises(RequestError, match=r"11 tokens .* at most 10 fit"):
        generate(engine, request(prompt_ids=tuple(range(11))))
    with pytest.raises(RequestError, match="max_new_tokens is 101"):
        generate(engine, request(options=replace(OPTIONS, max_new_tokens=101)))
