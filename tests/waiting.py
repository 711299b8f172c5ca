"""Waiting for what happens elsewhere: until it has, and never for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 120.0
STEP_S = 0.005


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Return once the condition holds; AssertionError if it does not in so many seconds."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {patience_s:g} s"
        time.sleep(STEP_S)


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """`wait_until` beside other tasks of the loop."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {patience_s:g} s"
        await asyncio.sleep(STEP_S)
