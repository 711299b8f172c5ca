"""Maps an error to the status and the message that a client gets, for every protocol.

HTTP replies, events of a stream and gRPC statuses are all made from an `ErrorReply`. The classes in
`florence.errors` have their status and message. Any other error is an internal one: its details are in the
log only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from starlette.requests import ClientDisconnect

from florence.errors import ClientLeft, DeadlineExceeded, FlorenceError, Unavailable

logger = logging.getLogger("florence.service")

INTERNAL_ERROR: Final = "internal error: the server's log says more"

GRPC_CODES: Mapping[int, str] = MappingProxyType(
    {
        400: "INVALID_ARGUMENT",
        404: "NOT_FOUND",
        413: "INVALID_ARGUMENT",
        499: "CANCELLED",
        500: "INTERNAL",
        501: "UNIMPLEMENTED",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
)
"""The gRPC status code for each HTTP status of an error."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """status: of HTTP. retry_after_s: whole seconds until the next try; None where that does not help."""

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
