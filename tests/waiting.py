"""Wait for events elsewhere, with a limit that only a hung test reaches."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 120.0
PATIENCE_CPU_S = 60.0
STEP_S = 0.005


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Return once the condition holds; AssertionError if it does not within this number of seconds."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {patience_s:g} s"
        time.sleep(STEP_S)


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait like `wait_until`, while the loop's other tasks run."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {patience_s:g} s"
        await asyncio.sleep(STEP_S)


@contextmanager
def interrupted_if_hung(limit_s: float = PATIENCE_CPU_S) -> Iterator[None]:
    """Fail a block that computes for this many seconds of CPU time, which do not depend on other programs."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it was not done after {limit_s:g} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
