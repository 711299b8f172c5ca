"""Makes text from clients safe for log lines: control characters are escaped, and long lines cut. Limits
lines of one kind, so that no client can fill the log at no cost.

Knows log records; nothing about requests.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from florence.server.log import logger
from florence.server.observability.json_log import ACCESS, FIELDS, UVICORN

LOGGERS: Final = (ACCESS, logger.name, UVICORN)
"""Loggers whose lines hold paths, tasks or reasons from requests."""
MUTED: Final = (
    "opentelemetry.baggage.propagation",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
)
"""Loggers that warn of each malformed member of a `baggage` or `tracestate` header: hundreds of lines from
one request."""
MAX_CHARS: Final = 2000
FIRST: Final = 100
A_SECOND: Final = 5
MAX_KINDS: Final = 256

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class EscapeControls(logging.Filter):
    """Escapes control characters in messages, including line breaks and terminal sequences; cuts messages
    after `MAX_CHARS` characters. Tracebacks, which are the service's own, stay as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        text = record.getMessage()
        escaped = _CONTROLS.sub(_escape, text[:MAX_CHARS])
        if escaped != text:
            record.msg, record.args = escaped, ()
        return True


class FewAlike(logging.Filter):
    """Writes `FIRST` lines of a kind, then `A_SECOND` a second (a token bucket); the next line written says
    how many were left out. A kind: the lines of one message template in the code. Lines about answers and
    errors are all written."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, _LineKind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.levelno >= logging.ERROR or hasattr(record, FIELDS) or _tells_an_answer(record):
            return True
        now = self._clock()
        with self._lock:
            if len(self._kinds) > MAX_KINDS:  # a library puts values into its messages
                self._kinds.clear()
            kind = self._kinds.setdefault(str(record.msg)[:MAX_CHARS], _LineKind(now))
            kind.room = min(FIRST, kind.room + (now - kind.looked) * A_SECOND)
            kind.looked = now
            if kind.room < 1:
                kind.left_out += 1
                return False
            kind.room -= 1
            left_out, kind.left_out = kind.left_out, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} lines like this left out)", ()
        return True


@dataclass(slots=True)
class _LineKind:
    looked: float
    room: float = FIRST
    left_out: int = 0


def _tells_an_answer(record: logging.LogRecord) -> bool:
    """Whether it is the access log's line of a POST request that was answered."""
    if record.name != ACCESS or not isinstance(record.args, tuple) or len(record.args) < 3:
        return False
    request, reply = str(record.args[1]), str(record.args[2])
    return ",method=POST," in request.partition("path=")[0] and reply.startswith("status=2")


def guard_log() -> None:
    """Add both filters to `LOGGERS`; the loggers in `MUTED` write errors only."""
    for name in LOGGERS:
        target = logging.getLogger(name)
        for made in (FewAlike, EscapeControls):
            if not any(isinstance(each, made) for each in target.filters):
                target.addFilter(made())
    for name in MUTED:
        logging.getLogger(name).setLevel(logging.ERROR)


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
