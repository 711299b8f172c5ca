"""HTTP replies, and the status and the message of an error, for every protocol.

HTTP replies, events of a stream and gRPC statuses are all made from an `ErrorReply`. The classes in
`florence.errors` have their status and message. Any other error is an internal one: its details are in the
log only. An error's reply over HTTP has its status and the body {"error": "..."}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from florence.errors import ClientLeft, DeadlineExceeded, FlorenceError, Unavailable, UnknownEncoding
from florence.server.log import logger
from florence.server.v2.compression import ENCODINGS

INTERNAL_ERROR: Final = "internal error: the server's log says more"

GRPC_CODES: Mapping[int, str] = MappingProxyType(
    {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        404: "NOT_FOUND",
        408: "DEADLINE_EXCEEDED",
        413: "INVALID_ARGUMENT",
        422: "INVALID_ARGUMENT",
        499: "CANCELLED",
        500: "INTERNAL",
        501: "UNIMPLEMENTED",
        502: "UNAVAILABLE",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
)
"""The gRPC status code for each HTTP status of an error."""

JSON: Final = "application/json"
CHECKPOINT_HEADER = "florence-checkpoint"
MAX_INLINE = 256 * 1024  # bytes; above this, parsing takes the event loop longer than a thread's start
T = TypeVar("T")
_MAX_PARSERS: Final = 2
_PARSERS: Final = RunVar[anyio.CapacityLimiter]("florence_parsers")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """`status`: HTTP's. `retry_after_s`: whole seconds until the next try; None where another try does not
    help."""

    status: int
    message: str
    retry_after_s: int | None = None


def failure_of(error: Exception) -> ErrorReply:
    """The status and message for an error."""
    if isinstance(error, Unavailable):
        return ErrorReply(error.status, str(error), max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, FlorenceError):
        return ErrorReply(error.status, str(error))
    if isinstance(error, ClientDisconnect):
        return ErrorReply(400, "the client left while it sent its request")
    return ErrorReply(500, INTERNAL_ERROR)


def log_failure(error: Exception) -> None:
    """Log an error that is not the client's mistake."""
    if isinstance(error, ClientLeft):
        logger.info("%s", error)
    elif isinstance(error, DeadlineExceeded):
        logger.warning("a request ran out of time: %s", error)
    elif not isinstance(error, FlorenceError | ClientDisconnect):
        logger.error("a request failed unexpectedly", exc_info=error)
    elif failure_of(error).status == 500:
        logger.error("a request failed with 500: %s", error, exc_info=error)


async def off_loop(size: int, function: Callable[..., T], *args: object) -> T:
    """The function's value; computed in a thread if `size`, the bytes it works on, is above `MAX_INLINE`.

    Few threads at a time: each may hold the interpreter's lock for some milliseconds, and the loop needs it.
    """
    if size <= MAX_INLINE:
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args, limiter=limiter_in(_PARSERS, _MAX_PARSERS))


def limiter_in(held: RunVar[anyio.CapacityLimiter], total: int) -> anyio.CapacityLimiter:
    """The event loop's limiter that a variable holds; made with the first call, for `total` at a time."""
    limiter = held.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(total)
        held.set(limiter)
    return limiter


async def reply_or_error(work: Awaitable[T]) -> T | Response:
    """The value of the work, or the reply for its error."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001  (logged and answered)
        return error_reply(error)


def error_reply(error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """The reply for an error: its status, its message, and the headers that say what may help. Logs the
    error."""
    log_failure(error)
    failure = failure_of(error)
    more = {} if failure.retry_after_s is None else {"Retry-After": str(failure.retry_after_s)}
    if failure.status == 401:
        more["WWW-Authenticate"] = "Bearer"
    if isinstance(error, UnknownEncoding):
        more["Accept-Encoding"] = ENCODINGS
    return json_reply({"error": failure.message}, failure.status, {**(headers or {}), **more})


def json_reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII, so that a lone surrogate in a quoted value can't break the reply."""
    return Response(json_bytes(content), status, headers, JSON)


def json_bytes(content: object) -> bytes:
    """JSON without white space."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def checkpoint_header(checkpoint: str) -> dict[str, str]:
    """The header that names the checkpoint; percent-encoded where HTTP headers can't hold a character."""
    return {CHECKPOINT_HEADER: quote(checkpoint, safe="/@:+,=~ ()")}
