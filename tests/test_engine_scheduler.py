"""The policy: order of arrival, bounded batches, bounded stalls. No tensors, thousands of made-up
requests."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable

import pytest

from florence.engine.config import EngineConfig
from florence.engine.scheduler import STEPS_BETWEEN_ENCODES, Pace, Scheduler
from florence.engine.slots import Slot, SlotAllocator


@pytest.mark.parametrize(
    "module",
    [
        "admission",
        "config",
        "scheduler",
        "device.features",
        "request",
        "slots",
        "observer",
        "entry",
        "pending",
    ],
)
def test_policy_imports_no_torch(module: str) -> None:
    code = f"import sys, florence.engine.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def everybody(entries: Iterable[object]) -> int:
    """There is room for all of them."""
    return len(list(entries))


def test_nobody_is_lost_or_overtaken_and_no_limit_is_exceeded() -> None:
    """Two thousand requests of random lengths and beams, arriving at random; places are given and given
    back."""
    dice = random.Random(5)
    limits = EngineConfig(max_batch_size=7, max_encode_batch=3, max_queue=50)
    scheduler: Scheduler[int] = Scheduler(limits)
    places = SlotAllocator(7, 15)
    beams = [dice.choice([1, 3, 3, 8]) for _ in range(2000)]
    order: list[int] = []
    active: dict[int, int] = {}  # request -> steps left
    taken_places: dict[int, Slot] = {}
    offered = refused = 0
    while len(order) + refused < 2000 or active:
        for _ in range(dice.randint(0, 2)):
            if offered < 2000:
                if len(scheduler) >= scheduler.config.max_queue:
                    refused += 1
                else:
                    scheduler.add(offered)
                offered += 1
        taken = scheduler.take(len(active), lambda entries: places.fits(beams[entry] for entry in entries))
        assert len(taken) <= limits.max_encode_batch
        order += taken
        active |= {request: dice.choice([1, 5, 60]) for request in taken}
        taken_places |= {request: places.take(beams[request]) for request in taken}
        assert len(active) <= limits.max_batch_size
        if active:
            scheduler.stepped()
        for request in [request for request, left in active.items() if left == 1]:
            places.give_back(taken_places.pop(request))
        active = {request: left - 1 for request, left in active.items() if left > 1}
        places.check(taken_places.values(), 7, 15)
    assert order == sorted(order)
    assert len(set(order)) == len(order) == 2000 - refused
    assert len(scheduler) == 0


def test_a_wide_request_is_not_overtaken_by_narrow_ones() -> None:
    """It waits until enough beams are free, and those behind it wait with it."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_encode_batch=2))
    places = SlotAllocator(16, 8)
    held = places.take(4)
    for beams in (8, 1, 1):
        scheduler.add(beams)
    assert scheduler.take(1, places.fits) == []
    places.give_back(held)
    assert scheduler.take(0, places.fits) == [8]


def test_a_batch_of_pictures_waits_a_few_steps_to_fill() -> None:
    """A full one goes at once; one that is not waits while others are decoded, but not for ever."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_batch_size=100, max_encode_batch=2))
    for number in range(5):
        scheduler.add(number)
    assert scheduler.take(0, everybody) == [0, 1]
    assert scheduler.take(2, everybody) == [2, 3]
    for _ in range(STEPS_BETWEEN_ENCODES):
        assert scheduler.take(4, everybody) == []
        scheduler.stepped()
    assert scheduler.take(4, everybody) == [4]


def test_a_batch_holds_what_the_budget_suffices_for_and_one_at_least() -> None:
    """Pictures that take long go one by one, without a wait for others; quick ones go in full batches; the
    size follows when the time changes."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_batch_size=100, encode_budget_ms=250))
    for number in range(100):
        scheduler.add(number)
    assert len(scheduler.take(0, everybody)) == 4  # nothing is known yet
    for seconds, size in ((2.8, 1), (0.25, 1), (0.1, 2), (0.07, 3), (0.01, 4)):
        for _ in range(12):
            scheduler.encoded(3, 3 * seconds)
        assert len(scheduler.take(3, everybody)) == size
    lonely: Scheduler[int] = Scheduler(EngineConfig())
    lonely.encoded(1, 2.8)
    lonely.add(1)
    lonely.take(0, everybody)
    lonely.add(2)
    assert lonely.take(1, everybody) == [2]  # a batch of one is full: no wait


def test_an_idle_device_takes_a_request_at_once() -> None:
    scheduler: Scheduler[str] = Scheduler(EngineConfig())
    scheduler.add("first")
    assert scheduler.take(0, everybody) == ["first"]
    scheduler.add("second")
    assert scheduler.take(1, everybody) == []
    assert scheduler.take(0, everybody) == ["second"]  # the first has left: nobody to wait for


def test_encoding_has_a_budget_only_while_others_are_decoded() -> None:
    scheduler: Scheduler[str] = Scheduler(EngineConfig(encode_budget_ms=500))
    assert scheduler.budget_s(3) == 0.5
    assert scheduler.budget_s(0) == float("inf")


def test_the_abandoned_leave_the_queue_and_the_rest_keep_their_order() -> None:
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_queue=5))
    for number in range(5):
        scheduler.add(number)
    assert len(scheduler) == 5
    assert scheduler.remove(lambda number: number % 2 == 1) == [1, 3]
    assert len(scheduler) == 3
    assert scheduler.take(0, everybody) == [0, 2, 4]


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
