"""Who of those that wait has gone: found as by looking at each of them, without looking at each of them."""

from __future__ import annotations

import gc
import random
import time
from concurrent.futures import Future
from dataclasses import dataclass
from weakref import ref

import numpy as np
import pytest
from fake_runner import request

from florence.engine.entry import Entry
from florence.engine.pending import Pending
from florence.errors import Closed


def entry(deadline: float | None = None) -> Entry:
    return Entry(request(1, deadline=deadline), Future())


@dataclass
class Clock:
    """Stands still unless it is moved."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_gone_are_those_that_looking_at_everyone_would_find() -> None:
    """Thousands of turns in which requests come, are cancelled, end, and run out of time, at random."""
    dice, clock = random.Random(3), Clock()
    pending, waiting = Pending(clock), set[Entry]()
    found = 0
    for _ in range(3000):
        clock.now += dice.random()
        for _ in range(dice.randint(0, 2)):
            new = entry(dice.choice([None, clock.now + 30 * dice.random()]))
            pending.add(new)
            waiting.add(new)
        some = dice.sample(sorted(waiting, key=id), min(2, len(waiting)))
        if some and dice.random() < 0.3:
            some[0].future.cancel()
        elif some and dice.random() < 0.9:
            pending.remove(some[-1])
            waiting.remove(some[-1])
            some[-1].settle(Closed("enough"))
        expected = {one for one in waiting if one.future.cancelled() or clock.now > one.deadline}
        assert pending.gone() == expected
        for one in expected:
            pending.remove(one)
        waiting -= expected
        found += len(expected)
        assert set(pending) == waiting
    assert found > 300


def test_while_nobody_goes_nobody_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait; one scan when a deadline has passed, and then none until the next one has."""
    looks = 0

    def deadline(self: Entry) -> float:
        nonlocal looks
        looks += 1
        assert self.request.deadline is not None
        return self.request.deadline

    monkeypatch.setattr(Entry, "deadline", property(deadline))
    clock = Clock()
    pending = Pending(clock)
    entries = [entry(10.0 + number) for number in range(1000)]
    for one in entries:
        pending.add(one)
    looks = 0
    assert [pending.gone() for _ in range(100)] == [set()] * 100
    entries[500].future.cancel()
    assert pending.gone() == {entries[500]}
    pending.remove(entries[500])
    assert looks == 0
    clock.now = 10.5
    assert pending.gone() == {entries[0]}
    pending.remove(entries[0])
    assert 0 < looks <= 2000
    looks = 0
    assert [pending.gone() for _ in range(100)] == [set()] * 100
    assert looks == 0


def test_a_future_that_is_kept_keeps_no_request() -> None:
    """Nor needs Python's collector of cycles, which comes seldom, and pictures are large."""
    gc.collect()
    gc.disable()
    try:
        pixels = np.zeros((32, 32, 3), np.uint8)
        kept, pending = ref(pixels), Pending(time.monotonic)
        one = Entry(request(pixels=pixels, deadline=1.0), Future())
        future = one.future
        pending.add(one)
        pending.remove(one)
        one.settle(Closed("enough"))
        del one, pixels
        assert future.done()
        assert kept() is None
    finally:
        gc.enable()
