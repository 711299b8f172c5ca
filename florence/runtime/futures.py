"""Futures of requests: each gets exactly one outcome, cancelled or not, and keeps no picture alive. Imports
no torch."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from weakref import ref

from florence.engine.loop import Engine
from florence.engine.request import Generation, Request
from florence.engine.sequence import SequenceState
from florence.readers.readers import complete

if TYPE_CHECKING:  # a GPU machine for benchmarks may have no pydantic
    from florence.answers.answer import Answer

T = TypeVar("T")


def failed(error: Exception) -> Future[T]:
    """A future that has already failed with this exception."""
    future: Future[T] = Future()
    complete(future, error)
    return future


def outcome_in(future: Future[Answer]) -> Answer | Exception:
    """Wait for the future; returns its result or its exception."""
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001  (handed to the caller, item by item)
        return error


def generate(engine: Engine, request: Request) -> Future[Generation]:
    """Submit a request and return a future, for programs that use an engine without `Florence2`. Cancelling
    the future cancels the request. Raises as `Engine.submit`."""
    future: Future[Generation] = Future()
    cancel_with(future, engine.submit(request, partial(complete, future)))
    return future


def cancel_with(future: Future[T], sequence: SequenceState) -> None:
    """Cancel the request when the future is cancelled or fails."""
    # A future keeps its callbacks, so this one must not keep the request, which holds the picture.
    future.add_done_callback(partial(_cancel, ref(sequence)))


def _cancel(sequence: ref[SequenceState], future: Future[T]) -> None:
    if (future.cancelled() or future.exception()) and (found := sequence()) is not None:
        found.cancel()


def shut_down(pool: ThreadPoolExecutor, seconds: float | None) -> None:
    """Shut the pool down: no new work; wait for the rest for at most `seconds`, None for as long as it
    takes."""
    if seconds is None:
        pool.shutdown()
        return
    pool.shutdown(wait=False)
    waiting = threading.Thread(target=pool.shutdown, daemon=True)  # `shutdown` itself has no time limit
    waiting.start()
    waiting.join(seconds)
