"""How a future gets its outcome, whatever became of who waits for it. Knows nothing about requests."""

from __future__ import annotations

import traceback
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def settle(future: Future[T], outcome: T | BaseException) -> bool:
    """Put the outcome into the future; False if it was cancelled meanwhile.

    Whoever keeps the future keeps its error, but not what the frames of the error's traceback held: pictures,
    for example. Those that still run are left alone.
    """
    if not future.set_running_or_notify_cancel():
        return False
    if isinstance(outcome, BaseException):
        _clear_frames(outcome)
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return True


def _clear_frames(error: BaseException | None) -> None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error may be its own cause
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
