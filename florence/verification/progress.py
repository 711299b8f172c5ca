"""Says on standard error what is being done, how far it is, and about how long it will still take."""

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
    """Lines for a person who waits. `say`: where a line goes; `clock`: seconds."""

    def __init__(
        self, say: Callable[[str], None] = _to_stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.say, self.clock = say, clock

    def over(self, what: str, items: Iterable[T], count: int, *, together: bool = False) -> Iterator[T]:
        """The items, with lines before the first and after the last one, and every 20 seconds between them.
        One by one the first item's time tells the others'; `together`, it does not."""
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
    """`8 s` or `12 min`, for a person."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
