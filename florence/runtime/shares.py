"""Shares of the queue: how many waiting requests one owner may have, so that a flood leaves room to others.

Knows names of owners only; how they prove them is the caller's matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Final

from florence.errors import Overloaded

NO_OWNER: Final = ""
"""Requests without an owner have no share: the whole queue is theirs."""


def no_owner() -> str:
    """For a service that knows no owners."""
    return NO_OWNER


class Shares:
    """The waiting requests of each owner. `owner`: says whose request it is, in the thread and the context
    that submit it. `most`: of one owner. `waiting`: by owner.

    Safe for threads without a lock, since a future may be cancelled in a thread that holds any lock.
    """

    def __init__(self, most: int, owner: Callable[[], str] = no_owner) -> None:
        self.owner = owner
        self._most = max(1, most)
        self.waiting: defaultdict[str, set[Hashable]] = defaultdict(set)

    def check(self, owner: str, wait_s: Callable[[int], float], more: int = 1) -> None:
        """Raise Overloaded if the owner may not have so many more waiting requests. `wait_s`: seconds that so
        many requests will take, for the time to come back."""
        waiting = len(self.waiting[owner])
        if owner == NO_OWNER or waiting + more <= self._most:
            return
        retry_after_s = max(1.0, wait_s(waiting))
        raise Overloaded(
            f"{waiting} requests of the API key {owner!r} are waiting, as many as may of one key; come back "
            f"in {retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    def enter(self, owner: str, request: Hashable) -> None:
        """The owner's request waits."""
        self.waiting[owner].add(request)

    def leave(self, owner: str, request: Hashable) -> None:
        """It waits no longer. Calling it again does nothing."""
        self.waiting[owner].discard(request)
