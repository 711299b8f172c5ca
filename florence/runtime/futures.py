"""Futures of requests: they get one outcome, cancelled or not, and keep no picture. Imports no torch."""

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

if TYPE_CHECKING:  # a machine with a GPU and little else has no pydantic
    from florence.answers.answer import Answer

T = TypeVar("T")


def failed(error: Exception) -> Future[T]:
    """A future that has its exception already."""
    future: Future[T] = Future()
    complete(future, error)
    return future


def outcome_in(future: Future[Answer]) -> Answer | Exception:
    """Wait for what is in a future: its result, or the exception in its place."""
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001  (handed to the caller, item by item)
        return error


def generate(engine: Engine, request: Request) -> Future[Generation]:
    """The engine's answer as a future, for programs that use an engine without `Florence2`. Cancelling the
    future cancels the request. Raises as `Engine.submit`."""
    future: Future[Generation] = Future()
    cancel_with(future, engine.submit(request, partial(complete, future)))
    return future


def cancel_with(future: Future[T], sequence: SequenceState) -> None:
    """Cancel the request when the future is cancelled, or fails for another reason."""
    # Futures keep their callbacks for ever: this one must not keep the request, which has the picture.
    future.add_done_callback(partial(_cancel, ref(sequence)))


def _cancel(sequence: ref[SequenceState], future: Future[T]) -> None:
    if (future.cancelled() or future.exception()) and (found := sequence()) is not None:
        found.cancel()


def shut_down(pool: ThreadPoolExecutor, seconds: float | None) -> None:
    """Let the pool finish what it has, for at most so many seconds; it takes no more."""
    if seconds is None:
        pool.shutdown()
        return
    pool.shutdown(wait=False)
    waiting = threading.Thread(target=pool.shutdown, daemon=True)  # which has no time limit itself
    waiting.start()
    waiting.join(seconds)
