"""Cancelled and expired requests are found without a look at every request."""

from __future__ import annotations

import gc
import random
from weakref import ref

import numpy as np
import pytest
from fake_runner import Clock, request

from florence.engine.observer import Observer
from florence.engine.pending import Pending
from florence.engine.sequence import SequenceState
from florence.errors import Closed


def sequence(deadline: float | None = None) -> SequenceState:
    """A sequence with this deadline."""
    return SequenceState(request(1, deadline=deadline))


def test_a_look_finds_what_looking_at_each_request_would() -> None:
    """In random turns, the found requests are those that a look at each of them finds."""
    dice, clock = random.Random(3), Clock()
    pending, waiting = Pending(clock, Observer()), set[SequenceState]()
    found = 0
    for _ in range(3000):
        clock.now += dice.random()
        for _ in range(dice.randint(0, 2)):
            new = sequence(dice.choice([None, clock.now + 30 * dice.random()]))
            pending.add(new)
            waiting.add(new)
        some = dice.sample(sorted(waiting, key=id), min(2, len(waiting)))
        if some and dice.random() < 0.3:
            some[0].cancel()
        elif some and dice.random() < 0.9:
            pending.complete(some[-1], Closed("enough"))
            waiting.remove(some[-1])
            if dice.random() < 0.3:
                some[-1].cancel()  # too late
        expected = {one for one in waiting if one.cancelled or clock.now > one.deadline}
        assert pending.cancelled_or_expired() == expected
        for one in expected:
            pending.complete(one, Closed("enough"))
        waiting -= expected
        found += len(expected)
        assert set(pending) == waiting
    assert found > 300


def test_while_none_is_cancelled_or_expires_none_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is looked at while none is cancelled or expires, and one scan follows each expired
    deadline."""
    looks = 0

    def deadline(self: SequenceState) -> float:
        nonlocal looks
        looks += 1
        assert self.request.deadline is not None
        return self.request.deadline

    monkeypatch.setattr(SequenceState, "deadline", property(deadline))
    clock = Clock()
    pending = Pending(clock, Observer())
    sequences = [sequence(10.0 + number) for number in range(1000)]
    for one in sequences:
        pending.add(one)
    looks = 0
    assert [pending.cancelled_or_expired() for _ in range(100)] == [set()] * 100
    sequences[500].cancel()
    assert pending.cancelled_or_expired() == {sequences[500]}
    pending.complete(sequences[500], Closed("enough"))
    assert looks == 0
    clock.now = 10.5
    assert pending.cancelled_or_expired() == {sequences[0]}
    pending.complete(sequences[0], Closed("enough"))
    assert 0 < looks <= 2000
    looks = 0
    assert [pending.cancelled_or_expired() for _ in range(100)] == [set()] * 100
    assert looks == 0


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_request_that_has_its_outcome_is_not_kept(cancelled: bool) -> None:
    """A request is freed as soon as it has its outcome, without the garbage collector or a further turn of
    the engine."""
    gc.collect()
    gc.disable()
    try:
        pixels = np.zeros((32, 32, 3), np.uint8)
        kept, pending = ref(pixels), Pending(Clock(), Observer())
        one = SequenceState(request(pixels=pixels, deadline=1.0))
        pending.add(one)
        if cancelled:
            one.cancel()
        pending.complete(one, Closed("enough"))
        del one, pixels
        assert kept() is None
    finally:
        gc.enable()
