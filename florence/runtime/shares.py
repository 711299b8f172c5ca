"""Shares of the queue: how many waiting requests one owner may have, so that a flood of one leaves room for
others.

Knows owners' names only; knows nothing about authentication.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Final

from florence.errors import Overloaded

NO_OWNER: Final = ""
"""Requests without an owner have no share: they may fill the whole queue."""


def no_owner() -> str:
    """The `owner` of a service that has no owners."""
    return NO_OWNER


class Shares:
    """The waiting requests of each owner. `owner`: returns a request's owner, called in the thread and
    context that submit it. `max_waiting`: waiting requests of one owner. `waiting`: by owner.

    Thread-safe without a lock, since a future may be cancelled in a thread that holds any lock.
    """

    def __init__(self, max_waiting: int, owner: Callable[[], str] = no_owner) -> None:
        self.owner = owner
        self._max_waiting = max(1, max_waiting)
        self.waiting: defaultdict[str, set[Hashable]] = defaultdict(set)

    def check(self, owner: str, wait_s: Callable[[int], float], more: int = 1) -> None:
        """Raise `Overloaded` if the owner may not have `more` more waiting requests. `wait_s`: estimates the
        seconds that a number of requests will take, for the time after which to retry."""
        waiting = len(self.waiting[owner])
        if owner == NO_OWNER or waiting + more <= self._max_waiting:
            return
        retry_after_s = max(1.0, wait_s(waiting))
        raise Overloaded(
            f"{waiting} requests of the API key {owner!r} are waiting, which is the limit for one key; come "
            f"back in {retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    def enter(self, owner: str, request: Hashable) -> None:
        """Record that a request of the owner waits."""
        self.waiting[owner].add(request)

    def leave(self, owner: str, request: Hashable) -> None:
        """Record that it no longer waits. Calling this again does nothing."""
        self.waiting[owner].discard(request)
