"""Who is encoded when: the policy of the engine, in plain Python. Imports no torch.

Requests are taken in the order of arrival, as many at once as there is room for, so none starves: one that
needs much room is not overtaken by others that need less. While somebody is decoded, encoding gets a budget
of time before each decode step, so that new pictures slow those in progress by a bounded amount and never
stop them. A batch holds as many pictures as that budget suffices for, one at least: where a picture takes
longer, a batch gains nothing, and its first picture would wait for its last. One that is not full waits a few
steps for more of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from florence.engine.config import EngineConfig

EntryT = TypeVar("EntryT")

STEPS_BETWEEN_ENCODES = 4
"""Decode steps for which an encode batch that is not full waits, while anyone is decoded."""

KEPT = 0.9  # of the mean, at each new answer
KEPT_ENCODE = 0.5  # of the mean, at each encode


class Scheduler(Generic[EntryT]):
    """A bounded queue, and the decision what to take from it. Not safe for threads: its owner locks."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._waiting: deque[EntryT] = deque()
        self._steps = STEPS_BETWEEN_ENCODES  # decode steps since the last encode
        self.encode_s = 0.0  # of one request, a running mean; 0 while nothing is known

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, entry: EntryT) -> None:
        """Put a request at the end of the queue."""
        self._waiting.append(entry)

    def take(self, decoding: int, fits: Callable[[Iterable[EntryT]], int]) -> list[EntryT]:
        """The requests to encode now, while `decoding` others are being decoded; none if it is not the
        time. `fits` says how many of some requests, from the first on, there is room for."""
        room = self.config.max_batch_size - decoding
        most = self._batch()
        count = min(room, most, len(self._waiting))
        if count < 1 or (count < most and decoding and self._steps < STEPS_BETWEEN_ENCODES):
            return []
        count = min(count, fits(self._waiting))
        if count:
            self._steps = 0
        return [self._waiting.popleft() for _ in range(count)]

    def _batch(self) -> int:
        """Requests of a full encode batch."""
        most, budget_s = self.config.max_encode_batch, self.config.encode_budget_ms / 1000
        if self.encode_s * most <= budget_s:
            return most
        return max(1, int(budget_s / self.encode_s))

    def encoded(self, count: int, seconds: float) -> None:
        """Say that `count` requests were encoded together in so many seconds."""
        mean = seconds / count
        kept = KEPT_ENCODE if self.encode_s else 0.0
        self.encode_s = kept * self.encode_s + (1 - kept) * mean

    def budget_s(self, decoding: int) -> float:
        """Seconds for which encoding may go on before the next decode step."""
        return self.config.encode_budget_ms / 1000 if decoding else float("inf")

    def stepped(self) -> None:
        """Say that one decode step has run."""
        self._steps += 1

    def remove(self, is_abandoned: Callable[[EntryT], bool]) -> list[EntryT]:
        """Take out of the queue those that nobody waits for any more."""
        kept: deque[EntryT] = deque()
        removed: list[EntryT] = []
        for entry in self._waiting:
            (removed if is_abandoned(entry) else kept).append(entry)
        self._waiting = kept
        return removed


class Pace:
    """How long an answer takes while the device is busy: a running mean of the time between two of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._seconds = 0.0

    def finished(self, count: int) -> None:
        """Say that `count` requests are finished now."""
        now = self._clock()
        if self._last is None:
            self._last = now
        if not count:
            return
        spent = (now - self._last) / count
        kept = KEPT**count if self._seconds else 0.0
        self._seconds = kept * self._seconds + (1 - kept) * spent
        self._last = now

    def rest(self) -> None:
        """Say that there is nothing to do: the time until the next request does not count."""
        self._last = None

    def seconds_for(self, count: int) -> float:
        """Seconds that `count` requests will take; 0 while nothing is known."""
        return self._seconds * count
