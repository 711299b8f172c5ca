"""Requests that have no outcome yet, and which of them nobody waits for any more. Imports no torch.

A cancel is noted when it happens, and deadlines are looked at when the first of them has passed: while nobody
goes, it costs nothing to ask who has gone, however many wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from math import inf

from florence.engine.entry import Entry
from florence.engine.request import Generation


class Pending:
    """Not safe for threads, so its owner locks; but futures may be cancelled in any thread, whatever locks
    that holds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[Future[Generation], Entry] = {}
        self._cancelled: deque[Future[Generation]] = deque()
        self._next_deadline = inf  # no later than the first of theirs

    def __contains__(self, entry: Entry) -> bool:
        return entry.future in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def add(self, entry: Entry) -> None:
        """Watch over a request that came."""
        self._entries[entry.future] = entry
        self._next_deadline = min(self._next_deadline, entry.deadline)
        entry.future.add_done_callback(self._note)  # not of the entry: futures keep their callbacks

    def remove(self, entry: Entry) -> None:
        """Forget a request that gets its outcome now."""
        self._entries.pop(entry.future, None)

    def gone(self) -> set[Entry]:
        """Those whose callers have gone, and those whose time is up."""
        gone = set()
        while self._cancelled:
            if entry := self._entries.get(self._cancelled.popleft()):
                gone.add(entry)
        now = self._clock()
        if now > self._next_deadline:
            gone |= {entry for entry in self if now > entry.deadline}
            self._next_deadline = min((entry.deadline for entry in self if entry not in gone), default=inf)
        return gone

    def _note(self, future: Future[Generation]) -> None:
        if future.cancelled():
            self._cancelled.append(future)
