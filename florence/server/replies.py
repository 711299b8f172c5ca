"""Waiting for the model's answer, and turning errors into HTTP replies: shared by all endpoints.

Each error becomes its status and the body {"error": "..."}. What was not foreseen is logged with its
traceback and answered 500 without a word about the inside.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack
from urllib.parse import quote

import anyio.to_thread
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from florence.answers.answer import Answer
from florence.errors import ClientLeft, Closed, DeadlineExceeded, FlorenceError, Unavailable
from florence.runtime.streaming import OnText

if TYPE_CHECKING:
    from florence.runtime.florence2 import RunOptions
    from florence.runtime.pipeline import TaskText
    from florence.types.tasks import TaskTable

logger = logging.getLogger("florence.service")

INTERNAL_ERROR = "internal error: the server's log says more"
CHECKPOINT_HEADER = "florence-checkpoint"
MOST_INLINE = 256 * 1024  # bytes; above this, parsing takes the event loop longer than a thread's start
T = TypeVar("T")


class Model(Protocol):
    """What the endpoints need of `florence.Florence2`."""

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    @property
    def tasks(self) -> TaskTable: ...

    def close(self, *, drain_s: float | None = None) -> None: ...

    def info(self) -> dict[str, Any]: ...

    def submit(
        self,
        image: bytes | Callable[[], bytes],
        task: str,
        text: str | None = None,
        *,
        on_text: OnText | None = None,
        **options: Unpack[RunOptions],
    ) -> Future[Answer]: ...

    def submit_all(
        self,
        image: bytes,
        asks: Iterable[str | tuple[str, TaskText]],
        **options: Unpack[RunOptions],
    ) -> list[Future[Answer]]: ...


async def settle(future: Future[Answer]) -> Answer:
    """The future's answer, without blocking. If the caller is cancelled (its client left), so is the future.

    Raises what the future raises; Closed when the future was cancelled from the model's side.
    """
    try:
        answer = await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise stopped() from None
    log_answer(answer)
    return answer


def stopped() -> Closed:
    """The error for an answer that the model's side gave up."""
    return Closed("the service stopped before it answered; send the request again")


def log_answer(answer: Answer, request: str = "") -> None:
    """A line for an answer, with the checkpoint that gave it. request: what else to say, in front."""
    logger.info(
        "%s%s answered by %s: %s, %d tokens, %.3f s, of these %.3f s waiting",
        request, answer.task, answer.checkpoint, answer.finish_reason,
        answer.usage.generated_tokens, answer.timings.total_s, answer.timings.queue_s,
    )  # fmt: skip


async def off_loop(size: int, function: Callable[..., T], *args: object) -> T:
    """The function's value; computed in a thread when it works on so many bytes that others would wait."""
    if size <= MOST_INLINE:
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args)


async def reply_or_error(work: Awaitable[T]) -> T | Response:
    """What the work gives, or the reply that its error becomes."""
    try:
        return await work
    except FlorenceError as error:
        return error_reply(error)
    except ClientDisconnect:
        return json_reply({"error": "the client left while it sent its request"}, 400)
    except Exception:
        logger.exception("a request failed unexpectedly")
        return unforeseen_reply()


def error_reply(error: FlorenceError, headers: Mapping[str, str] | None = None) -> Response:
    """The reply for an error: its status, its message, and when to come back if that helps."""
    log_failure(error)
    retry_s = retry_after_s(error)
    retry = {} if retry_s is None else {"Retry-After": str(retry_s)}
    return json_reply({"error": str(error)}, error.status, {**(headers or {}), **retry})


def log_failure(error: FlorenceError) -> None:
    """Log an error that is not the client's mistake."""
    if isinstance(error, ClientLeft):
        logger.info("%s", error)
    elif isinstance(error, DeadlineExceeded):
        logger.warning("a request ran out of time: %s", error)
    elif error.status == 500:
        logger.error("a request failed with %d: %s", error.status, error, exc_info=error)


def retry_after_s(error: FlorenceError) -> int | None:
    """Whole seconds after which to try again; None where that would not help."""
    return max(1, math.ceil(error.retry_after_s)) if isinstance(error, Unavailable) else None


def unforeseen_reply() -> Response:
    """The reply for an exception that nobody foresaw; the log has to say more."""
    return json_reply({"error": INTERNAL_ERROR}, 500)


def json_reply(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII, so that a lone surrogate in a quoted value can't break the reply."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(body, status, headers, "application/json")


def checkpoint_header(checkpoint: str) -> dict[str, str]:
    """The header that names the checkpoint; percent-encoded where HTTP headers can't hold a character."""
    return {CHECKPOINT_HEADER: quote(checkpoint, safe="/@:+,=~ ()")}
