"""Each key expires once, when its deadline has passed, and never after it was removed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from fake_runner import Clock
from waiting import wait_until

from florence.runtime.deadlines import DeadlineWatch


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves."""
    return Clock()


@pytest.fixture
def expired() -> Counter[int]:
    """The number of expirations by key."""
    return Counter()


@pytest.fixture
def watch(clock: Clock, expired: Counter[int]) -> Iterator[DeadlineWatch[int]]:
    """A watch that counts the expired keys."""
    made: DeadlineWatch[int] = DeadlineWatch(lambda key: expired.update([key]), clock)
    yield made
    made.close()


def test_each_key_expires_once_when_its_time_has_come(
    watch: DeadlineWatch[int], clock: Clock, expired: Counter[int]
) -> None:
    """Each key expires once, for any order of adding; a removed key never expires."""
    dice = random.Random(0)
    # Deadlines shorter than a tick, so that the thread reads the clock, which only the test moves, often.
    deadlines = {key: 0.01 * dice.random() for key in range(500)}
    for key, deadline in deadlines.items():
        watch.add(key, deadline)
    removed = {key for key in deadlines if dice.random() < 0.3}
    for key in removed:
        watch.remove(key)
    for now in (0.002, 0.005, 0.02):
        assert not {key for key in expired if deadlines[key] > clock.now}
        clock.now = now
        due = {key for key, deadline in deadlines.items() if deadline <= now} - removed
        wait_until(lambda due=due: expired.keys() >= due)
    assert expired == Counter(set(deadlines) - removed)


def test_an_earlier_deadline_is_kept_behind_a_later_one(
    watch: DeadlineWatch[int], clock: Clock, expired: Counter[int]
) -> None:
    """The thread that sleeps until a late deadline wakes for an earlier one."""
    watch.add(1, 3600.0)
    clock.now = 1.0
    watch.add(2, 0.5)
    wait_until(lambda: expired == {2: 1})
    clock.now = 4000.0
    watch.add(3, 3599.0)
    wait_until(lambda: expired == {1: 1, 2: 1, 3: 1})
