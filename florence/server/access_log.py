"""What clients write, as lines of the log can hold it: control characters escaped, and not too much of it.

Knows log records; nothing about requests.
"""

from __future__ import annotations

import logging
import re
from typing import Final

LOGGERS: Final = ("bentoml.access", "florence.service", "uvicorn.error")
"""Those that log paths, tasks or reasons from requests."""
MUTED: Final = (
    "opentelemetry.baggage.propagation",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
)
"""Those that warn of each member of a `baggage` or `tracestate` header that is wrong: hundreds of lines from
one request."""
MOST_CHARS: Final = 2000

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class EscapeControls(logging.Filter):
    """Escapes control characters in messages, line breaks and terminal sequences among them, and cuts them.
    Tracebacks, which are the service's own, stay as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        text = record.getMessage()
        escaped = _CONTROLS.sub(_escape, text[:MOST_CHARS])
        if escaped != text:
            record.msg, record.args = escaped, ()
        return True


def escape_what_clients_write() -> None:
    """Let the service's loggers escape, and those of headers that mean nothing here write errors only."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, EscapeControls) for each in logger.filters):
            logger.addFilter(EscapeControls())
    for name in MUTED:
        logging.getLogger(name).setLevel(logging.ERROR)


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
