"""The policy: order of arrival, bounded batches, bounded stalls. No tensors, thousands of made-up
requests."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from florence.engine.scheduler import STEPS_BETWEEN_ENCODES, BatchLimits, Pace, Scheduler


@pytest.mark.parametrize("module", ["scheduler", "features", "request"])
def test_policy_imports_no_torch(module: str) -> None:
    code = f"import sys, florence.engine.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nobody_is_lost_or_overtaken_and_no_limit_is_exceeded() -> None:
    """Two thousand requests of random lengths, arriving at random."""
    dice = random.Random(5)
    limits = BatchLimits(max_batch_size=7, max_encode_batch=3, max_queue=50)
    scheduler: Scheduler[int] = Scheduler(limits)
    order: list[int] = []
    active: dict[int, int] = {}  # request -> steps left
    offered = refused = 0
    while len(order) + refused < 2000 or active:
        for _ in range(dice.randint(0, 2)):
            if offered < 2000:
                if scheduler.full:
                    refused += 1
                else:
                    scheduler.add(offered)
                offered += 1
        taken = scheduler.take(len(active))
        assert len(taken) <= limits.max_encode_batch
        order += taken
        active |= {request: dice.choice([1, 5, 60]) for request in taken}
        assert len(active) <= limits.max_batch_size
        if active:
            scheduler.stepped()
        active = {request: left - 1 for request, left in active.items() if left > 1}
    assert order == sorted(order)
    assert len(set(order)) == len(order) == 2000 - refused
    assert len(scheduler) == 0


def test_a_stream_of_pictures_never_stops_those_being_decoded() -> None:
    """With the queue always full, several decode steps run between two encodes."""
    scheduler: Scheduler[int] = Scheduler(BatchLimits(max_batch_size=1000, max_encode_batch=1))
    decoding, steps = 0, []
    for number in range(200):
        scheduler.add(number)
    since = 0
    for _ in range(400):
        if taken := scheduler.take(decoding):
            if decoding:
                steps.append(since)
            decoding, since = decoding + len(taken), 0
        scheduler.stepped()
        since += 1
    assert min(steps) == STEPS_BETWEEN_ENCODES


def test_an_idle_device_takes_a_request_at_once() -> None:
    scheduler: Scheduler[str] = Scheduler(BatchLimits())
    scheduler.add("first")
    assert scheduler.take(0) == ["first"]
    scheduler.add("second")
    assert scheduler.take(1) == []
    assert scheduler.take(0) == ["second"]  # the first has left: nobody to wait for


def test_the_abandoned_leave_the_queue_and_the_rest_keep_their_order() -> None:
    scheduler: Scheduler[int] = Scheduler(BatchLimits(max_queue=5))
    for number in range(5):
        scheduler.add(number)
    assert scheduler.full
    assert scheduler.remove(lambda number: number % 2 == 1) == [1, 3]
    assert not scheduler.full
    assert scheduler.take(0) == [0, 2, 4]


def test_the_time_to_come_back_follows_the_pace_and_not_the_pauses() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.seconds_for(10) == 0
    pace.finished(0)
    for _ in range(100):
        now += 1.0
        pace.finished(0)  # a step in which nobody ends
        now += 1.0
        pace.finished(1)
    assert pace.seconds_for(10) == pytest.approx(20, rel=0.01)
    pace.rest()
    now += 3600
    pace.finished(0)
    now += 2.0
    pace.finished(1)
    assert pace.seconds_for(10) == pytest.approx(20, rel=0.01)
