"""The scheduling policy: order of arrival, bounded batches and bounded stalls, with thousands of random
requests."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import florence.engine
from florence.engine.config import EngineConfig
from florence.engine.scheduler import STEPS_BETWEEN_ENCODES, Scheduler, ThroughputEstimate
from florence.engine.slots import Slot, SlotAllocator


def test_no_module_of_the_engine_loads_torch_but_those_of_the_device() -> None:
    """The engine's modules outside `device` load neither torch nor the model's room."""
    modules = [f"florence.engine.{path.stem}" for path in Path(florence.engine.__path__[0]).glob("*.py")]
    assert "florence.engine.loop" in modules
    wanted = ", ".join(["florence.engine.device.encode.features", *modules])
    code = f"import sys, {wanted}; sys.exit(bool({{'torch', 'florence.model'}} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def room_for_all(requests: Iterable[object]) -> int:
    """The number of requests: all fit."""
    return len(list(requests))


def test_no_request_is_lost_or_overtaken_and_no_limit_is_exceeded() -> None:
    """No request of two thousand random ones is lost or overtaken, and no limit is exceeded."""
    dice = random.Random(5)
    limits = EngineConfig(max_batch_size=7, max_encode_batch=3, max_queue=50)
    scheduler: Scheduler[int] = Scheduler(limits)
    slots = SlotAllocator(7, 15)
    beams = [dice.choice([1, 3, 3, 8]) for _ in range(2000)]
    order: list[int] = []
    active: dict[int, int] = {}  # request -> remaining steps
    held: dict[int, Slot] = {}
    offered = refused = 0
    while len(order) + refused < 2000 or active:
        for _ in range(dice.randint(0, 2)):
            if offered < 2000:
                if len(scheduler) >= scheduler.config.max_queue:
                    refused += 1
                else:
                    scheduler.add(offered)
                offered += 1
        taken = scheduler.take(len(active), lambda some: slots.fits(beams[one] for one in some))
        assert len(taken) <= limits.max_encode_batch
        order += taken
        active |= {request: dice.choice([1, 5, 60]) for request in taken}
        held |= {request: slots.take(beams[request]) for request in taken}
        assert len(active) <= limits.max_batch_size
        if active:
            scheduler.stepped()
        for request in [request for request, left in active.items() if left == 1]:
            slots.give_back(held.pop(request))
        active = {request: left - 1 for request, left in active.items() if left > 1}
        slots.check(held.values(), 7, 15)
    assert order == sorted(order)
    assert len(set(order)) == len(order) == 2000 - refused
    assert len(scheduler) == 0


def test_a_request_with_many_beams_is_not_overtaken_by_others_with_few() -> None:
    """A request waits until enough beams are free, and later requests wait behind it."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_encode_batch=2))
    slots = SlotAllocator(16, 8)
    held = slots.take(4)
    for beams in (8, 1, 1):
        scheduler.add(beams)
    assert scheduler.take(1, slots.fits) == []
    slots.give_back(held)
    assert scheduler.take(0, slots.fits) == [8]


def test_a_batch_of_pictures_waits_a_few_steps_to_fill() -> None:
    """A full batch is encoded at once; another waits a limited number of steps while others are decoded."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_batch_size=100, max_encode_batch=2))
    for number in range(5):
        scheduler.add(number)
    assert scheduler.take(0, room_for_all) == [0, 1]
    assert scheduler.take(2, room_for_all) == [2, 3]
    for _ in range(STEPS_BETWEEN_ENCODES):
        assert scheduler.take(4, room_for_all) == []
        scheduler.stepped()
    assert scheduler.take(4, room_for_all) == [4]


def test_an_encode_has_a_size_that_the_device_has() -> None:
    """An encode has a batch size that the device supports, and the remaining requests are next."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_batch_size=100, max_encode_batch=16))
    for number in range(30):
        scheduler.add(number)
    offered: list[int] = []

    def fits(some: Iterable[int]) -> int:
        offered.append(len(list(some)))
        return max(size for size in (1, 2, 4, 8, 12, 16) if size <= offered[-1])

    taken = [scheduler.take(0, fits) for _ in range(3)]
    assert offered == [16, 14, 2]
    assert [len(each) for each in taken] == [16, 12, 2]
    assert [number for each in taken for number in each] == list(range(30))


def test_a_batch_holds_what_the_budget_suffices_for_and_one_at_least() -> None:
    """A batch has as many pictures as the budget allows, at least one, and its size follows the measured
    time."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_batch_size=100, encode_budget_ms=250))
    for number in range(100):
        scheduler.add(number)
    assert len(scheduler.take(0, room_for_all)) == 4  # there is no measurement yet
    for seconds, size in ((2.8, 1), (0.25, 1), (0.1, 2), (0.07, 3), (0.01, 4)):
        for _ in range(12):
            scheduler.encoded(3, 3 * seconds)
        assert len(scheduler.take(3, room_for_all)) == size
    single: Scheduler[int] = Scheduler(EngineConfig())
    single.encoded(1, 2.8)
    single.add(1)
    single.take(0, room_for_all)
    single.add(2)
    assert single.take(1, room_for_all) == [2]  # a batch of one is full and does not wait


def test_an_idle_device_takes_a_request_at_once() -> None:
    """An idle device takes a request at once."""
    scheduler: Scheduler[str] = Scheduler(EngineConfig())
    scheduler.add("first")
    assert scheduler.take(0, room_for_all) == ["first"]
    scheduler.add("second")
    assert scheduler.take(1, room_for_all) == []
    assert scheduler.take(0, room_for_all) == ["second"]  # the first has ended


def test_encoding_has_a_budget_only_while_others_are_decoded() -> None:
    """Encoding has a budget only while requests are decoded."""
    scheduler: Scheduler[str] = Scheduler(EngineConfig(encode_budget_ms=500))
    assert scheduler.has_time(0.49, 3, 1)
    assert not scheduler.has_time(0.5, 3, 1)
    assert scheduler.has_time(1e9, 0, 1)


def test_no_part_is_begun_that_would_end_after_the_budget() -> None:
    """No part begins that would exceed the budget, estimated by the longest recent part; the first of a turn
    always may."""
    scheduler: Scheduler[str] = Scheduler(EngineConfig(encode_budget_ms=500))
    for seconds in (0.01, 0.2, 0.01):
        scheduler.part_ended(seconds)
    assert scheduler.has_time(0.29, 3, 1)
    assert not scheduler.has_time(0.32, 3, 1)
    assert not scheduler.has_time(0.12, 3, 2)  # one part is still running
    scheduler.part_ended(2.0)
    assert scheduler.has_time(0.0, 3, 0)
    assert not scheduler.has_time(0.0, 3, 1)
    for _ in range(100):
        scheduler.part_ended(0.01)
    assert scheduler.has_time(0.45, 3, 1)


def test_unwanted_requests_leave_the_queue_and_the_rest_keep_their_order() -> None:
    """Removed requests leave the queue, and the others keep their order."""
    scheduler: Scheduler[int] = Scheduler(EngineConfig(max_queue=5))
    for number in range(5):
        scheduler.add(number)
    assert len(scheduler) == 5
    scheduler.remove({1, 3, 99})
    assert len(scheduler) == 3
    assert scheduler.take(0, room_for_all) == [0, 2, 4]


def test_the_time_to_retry_follows_the_throughput_and_not_the_pauses() -> None:
    """The time to retry follows the throughput and ignores pauses."""
    now = 0.0
    estimate = ThroughputEstimate(lambda: now)
    assert estimate.seconds_for(10) == 0
    estimate.finished(0)
    for _ in range(100):
        now += 1.0
        estimate.finished(0)  # no request ends in this step
        now += 1.0
        estimate.finished(1)
    assert estimate.seconds_for(10) == pytest.approx(20, rel=0.01)
    estimate.rest()
    now += 3600
    estimate.finished(0)
    now += 2.0
    estimate.finished(1)
    assert estimate.seconds_for(10) == pytest.approx(20, rel=0.01)
