"""HTTP replies, shared by all endpoints. An error's reply has its status and the body {"error": "..."}."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import quote

import anyio.to_thread
from starlette.responses import Response

from florence.server.failures import failure_of, log_failure

CHECKPOINT_HEADER = "florence-checkpoint"
MOST_INLINE = 256 * 1024  # bytes; above this, parsing takes the event loop longer than a thread's start
T = TypeVar("T")


async def off_loop(size: int, function: Callable[..., T], *args: object) -> T:
    """The function's value; computed in a thread if `size`, the bytes it works on, is above MOST_INLINE."""
    if size <= MOST_INLINE:
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args)


async def reply_or_error(work: Awaitable[T]) -> T | Response:
    """The value of the work, or the reply for its error."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001  (logged and answered)
        return error_reply(error)


def error_reply(error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """The reply for an error: its status, its message, and when to come back if that helps. Logs it."""
    log_failure(error)
    failure = failure_of(error)
    retry = {} if failure.retry_after_s is None else {"Retry-After": str(failure.retry_after_s)}
    return json_reply({"error": failure.message}, failure.status, {**(headers or {}), **retry})


def json_reply(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII, so that a lone surrogate in a quoted value can't break the reply."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(body, status, headers, "application/json")


def checkpoint_header(checkpoint: str) -> dict[str, str]:
    """The header that names the checkpoint; percent-encoded where HTTP headers can't hold a character."""
    return {CHECKPOINT_HEADER: quote(checkpoint, safe="/@:+,=~ ()")}
