"""One thread that sleeps until the earliest of many deadlines. Knows nothing about what they belong to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")


class DeadlineWatch(Generic[KeyT]):
    """Calls `expire` once for each key whose deadline has passed, in a thread of its own.

    `clock`: in seconds. `expire` must be quick and must not raise.
    """

    def __init__(self, expire: Callable[[KeyT], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._expire = expire
        self._clock = clock
        self._deadlines: dict[KeyT, float] = {}
        self._earliest = inf  # at most the earliest deadline
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="florence-deadlines", daemon=True).start()

    def add(self, key: KeyT, deadline: float) -> None:
        """Watch a key until `deadline`, a reading of the clock."""
        self._deadlines[key] = deadline
        with self._changed:
            if deadline < self._earliest:
                self._earliest = deadline
                self._changed.notify()

    def remove(self, key: KeyT) -> None:
        """Stop watching a key, if it is still watched. Takes no lock."""
        self._deadlines.pop(key, None)

    def close(self) -> None:
        """End the thread without waiting for it; keys that are left never expire."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (left_s := self._earliest - self._clock()) > 0:
                    self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
                if self._closed:
                    return
                expired = self._take_expired()
            for key in expired:
                self._expire(key)

    def _take_expired(self) -> list[KeyT]:
        now = self._clock()
        watched = list(self._deadlines.items())
        self._earliest = min((deadline for _, deadline in watched if deadline > now), default=inf)
        passed = [key for key, deadline in watched if deadline <= now]
        return [key for key in passed if self._deadlines.pop(key, None) is not None]
