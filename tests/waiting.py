"""Wait for events elsewhere, with a limit that only a hung test reaches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 120.0
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
