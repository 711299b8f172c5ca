"""Requests are taken in order, share the device's steps, and each gets one outcome; too many are refused."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import wait
from dataclasses import replace

import pytest
from fake_runner import OPTIONS, PATIENCE_S, POISON_ENCODE, POISON_STEP, FakeRunner, config, hold, request
from waiting import wait_until

from florence.engine.loop import Engine
from florence.engine.observer import FinishReason, Observer
from florence.errors import Overloaded, RequestError


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


def test_a_wait_that_would_be_too_long_is_refused_at_once(runner: FakeRunner) -> None:
    """With the time to come back; the limit is on the time of waiting, not on the number of requests."""
    limits = config(max_batch_size=1, max_latency_ms=50)
    engine = Engine(runner, limits)  # type: ignore[arg-type]
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


def test_what_encoding_takes_counts_for_the_wait(runner: FakeRunner) -> None:
    """Also while few come, each after the former's answer: then nothing else says what a request costs."""
    runner.parts, runner.part_s = 4, 0.05
    limits = config(max_batch_size=1, max_latency_ms=1000)
    engine = Engine(runner, limits)  # type: ignore[arg-type]
    for number in range(3):
        engine.submit(request(number)).result(PATIENCE_S)
    engine.check_load(2)
    with pytest.raises(Overloaded, match=r"would wait for"):
        engine.check_load(20)  # of 0.15 s each
    engine.close()


def test_an_encode_in_parts_lets_the_others_decode_between_them(runner: FakeRunner) -> None:
    """With no budget at all there is a step after each part."""
    runner.parts, runner.part_s = 4, 0.01
    limits = config(max_batch_size=8, max_encode_batch=1, encode_budget_ms=0.1)
    engine = Engine(runner, limits)  # type: ignore[arg-type]
    running = hold(engine, runner)
    runner.events.clear()
    joining = engine.submit(request(1))
    wait_until(lambda: len(runner.order) >= 2)
    runner.gate.set()
    assert {future.result(PATIENCE_S).token_ids[1] for future in (running, joining)} == {0, 1}
    between = "".join(runner.events).split("part")
    assert len(between) == 4  # three parts that yielded
    assert all("step" in steps for steps in between[1:])
    engine.close()


def test_an_encode_that_everybody_has_left_is_broken_off(runner: FakeRunner) -> None:
    runner.parts, runner.part_s = 1000, 0.005
    engine = Engine(runner, config())  # type: ignore[arg-type]
    future = engine.submit(request(1))
    wait_until(lambda: "part" in runner.events)
    assert future.cancel()
    runner.parts = 1
    assert engine.submit(request(2)).result(PATIENCE_S).token_ids[1] == 2
    assert runner.order == [2]
    engine.close()


def test_every_request_is_told_to_the_observer_once_with_its_end(runner: FakeRunner) -> None:
    observer = CountingObserver()
    limits = config(max_batch_size=1, max_queue=3)
    engine = Engine(runner, limits, observer=observer)  # type: ignore[arg-type]
    hold(engine, runner)
    bad, gone = engine.submit(request(POISON_STEP)), engine.submit(request(2))
    late = engine.submit(request(3, deadline=time.monotonic()))
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
    runner: FakeRunner, monkeypatch: pytest.MonkeyPatch, third: int
) -> None:
    """Also while it is encoded, in a batch, or alone because the batch failed."""
    observer, all_came = CountingObserver(), threading.Event()
    monkeypatch.setattr(runner, "prepare", all_came.wait)
    runner.gate.clear()
    runner.parts = 3
    limits = config(max_batch_size=4, max_encode_batch=4, encode_budget_ms=0.1)
    engine = Engine(runner, limits, observer=observer)  # type: ignore[arg-type]
    futures = [engine.submit(request(number)) for number in (0, 1, third, 3, 4)]
    all_came.set()
    wait_until(lambda: len(runner.order) == 4)
    runner.gate.set()
    wait(futures, PATIENCE_S)
    engine.close()
    sums = [sum(load) for load in observer.loads]
    assert sums[0] == 5
    assert sums == sorted(sums, reverse=True)  # who leaves one for another is never in none
    assert (1, 4, 0) in observer.loads
    assert observer.loads[-1] == (0, 0, 0)


class CountingObserver(Observer):
    def __init__(self) -> None:
        self.endings: Counter[FinishReason] = Counter()
        self.loads: list[tuple[int, int, int]] = []

    def load(self, waiting: int, encoding: int, decoding: int) -> None:
        self.loads.append((waiting, encoding, decoding))

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        self.endings[ending] += 1


def test_requests_share_steps_and_never_wait_for_each_other(runner: FakeRunner) -> None:
    """Those that come while one is decoded join it, and all end in the same step."""
    engine = Engine(runner, config(max_batch_size=8, max_encode_batch=8))  # type: ignore[arg-type]
    futures = [hold(engine, runner), *(engine.submit(request(number)) for number in (1, 2, 3))]
    wait_until(lambda: len(runner.order) >= 4)
    runner.gate.set()
    assert [future.result(PATIENCE_S).token_ids[1] for future in futures] == [0, 1, 2, 3]
    assert runner.batches == [4]
    engine.close()


def test_what_does_not_fit_the_model_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"11 tokens .* at most 10 fit"):
        engine.submit(request(prompt_ids=tuple(range(11))))
    with pytest.raises(RequestError, match="max_new_tokens is 101"):
        engine.submit(request(options=replace(OPTIONS, max_new_tokens=101)))
