"""Log lines as JSON objects, one a line.

Knows log records, and the request that a line belongs to. Text from clients is escaped by JSON's rules.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from florence.server.keys import caller
from florence.server.observability.request_ids import call_facts

FIELDS: Final = "florence"
"""The attribute of a record that has further fields: `logger.info(..., extra={FIELDS: {...}})`."""
ACCESS: Final = "bentoml.access"
UVICORN: Final = "uvicorn.error"
_LOGGERS: Final = (None, "bentoml", UVICORN, "circus")  # those to which BentoML gives handlers


class JsonLines(logging.Formatter):
    """A line's fields: `time`, `level`, `logger` and `message`; in a request `request_id`, `key`, `trace_id`
    and `span_id`; for an answer its facts; for an exception its traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: one JSON object."""
        facts, time = call_facts(), datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": facts.request_id if facts else None,
            "key": caller() or None,
            **_trace_ids(),
            **getattr(record, FIELDS, {}),
            "error": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in line.items() if value is not None})


class OneLineAnAnswer(logging.Filter):
    """Drops the access log's line for a request whose answer was logged already, in more detail."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        facts = call_facts()
        return facts is None or not facts.logged


def log_json() -> None:
    """Write this process's log lines as JSON from now on."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonLines())
    access = logging.getLogger(ACCESS)
    if not any(isinstance(each, OneLineAnAnswer) for each in access.filters):
        access.addFilter(OneLineAnAnswer())


def _trace_ids() -> dict[str, str]:
    from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

    span = get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": format_trace_id(span.trace_id), "span_id": format_span_id(span.span_id)}
