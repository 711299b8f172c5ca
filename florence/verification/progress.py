"""Reports progress on standard error: the current step, how far it is, and the estimated time left. Knows
nothing about the steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")
_EVERY_S: Final = 20.0


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Progress:
    """Progress lines for the user. `say`: prints a line; `clock`: in seconds."""

    def __init__(
        self, say: Callable[[str], None] = _to_stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.say, self.clock = say, clock

    def over(self, what: str, items: Iterable[T], count: int, *, together: bool = False) -> Iterator[T]:
        """Iterate over the items, with lines before the first and after the last one, and every 20 seconds in
        between. `together`: the items run at once, so the first one's time is not used to estimate the time
        left."""
        started = said = self.clock()
        self.say(f"{what}: {count} answers")
        for done, item in enumerate(items, start=1):
            yield item
            now = self.clock()
            if done < count and (now - said >= _EVERY_S or (done == 1 and not together)):
                said = now
                left = (now - started) / done * (count - done)
                self.say(f"{what}: {done} of {count}, about {duration(left)} left")
        self.say(f"{what}: done in {duration(self.clock() - started)}")


def duration(seconds: float) -> str:
    """A duration as text: `8 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
