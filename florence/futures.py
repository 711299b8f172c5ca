"""How a future gets its outcome, whatever became of who waits for it. Knows nothing about requests."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def settle(future: Future[T], outcome: T | Exception) -> bool:
    """Put the outcome into the future; False if it was cancelled meanwhile."""
    if not future.set_running_or_notify_cancel():
        return False
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return True
