"""Who is encoded when: the policy of the engine, in plain Python. Imports no torch.

Requests are taken in the order of arrival, as many at once as there is room for, so none starves. Between two
encodes at least `STEPS_BETWEEN_ENCODES` decode steps run while anyone is decoding, so that a stream of new
pictures slows those in progress by a bounded amount and never stops them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

EntryT = TypeVar("EntryT")

STEPS_BETWEEN_ENCODES = 4
KEPT = 0.9  # of the mean, at each new answer


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much is done at once.

    `max_batch_size`: requests that decode together. `max_encode_batch`: pictures that are encoded together.
    `max_queue`: requests that may wait.
    """

    max_batch_size: int = 16
    max_encode_batch: int = 4
    max_queue: int = 256


class Scheduler(Generic[EntryT]):
    """A bounded queue, and the decision what to take from it. Not safe for threads: its owner locks."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._waiting: deque[EntryT] = deque()
        self._steps = STEPS_BETWEEN_ENCODES  # decode steps since the last encode

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more request must be refused."""
        return len(self._waiting) >= self.limits.max_queue

    def add(self, entry: EntryT) -> None:
        """Put a request at the end of the queue."""
        self._waiting.append(entry)

    def take(self, decoding: int) -> list[EntryT]:
        """The requests to encode now, while `decoding` others are being decoded; none if it is not the
        time."""
        if decoding and self._steps < STEPS_BETWEEN_ENCODES:
            return []
        room = self.limits.max_batch_size - decoding
        count = min(room, self.limits.max_encode_batch, len(self._waiting))
        if count < 1:
            return []
        self._steps = 0
        return [self._waiting.popleft() for _ in range(count)]

    def stepped(self) -> None:
        """Say that one decode step has run."""
        self._steps += 1

    def remove(self, is_abandoned: Callable[[EntryT], bool]) -> list[EntryT]:
        """Take out of the queue those that nobody waits for any more."""
        removed = [entry for entry in self._waiting if is_abandoned(entry)]
        if removed:
            self._waiting = deque(entry for entry in self._waiting if entry not in removed)
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
        self._seconds = KEPT * self._seconds + (1 - KEPT) * spent if self._seconds else spent
        self._last = now

    def rest(self) -> None:
        """Say that there is nothing to do: the time until the next request does not count."""
        self._last = None

    def seconds_for(self, count: int) -> float:
        """Seconds that `count` requests will take; 0 while nothing is known."""
        return self._seconds * count
