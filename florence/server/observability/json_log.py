"""Log lines as JSON objects, one a line.

Knows log records, and the request that a line belongs to. What clients write is escaped, as JSON has it.
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
_ACCESS: Final = "bentoml.access"
_LOGGERS: Final = (None, "bentoml", "uvicorn.error", "circus")  # those to which BentoML gives handlers


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger` and `message`; of a request its `request_id`, `key`, `trace_id` and
    `span_id`; of an answer its facts; the traceback of an `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
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
    """Drops the access log's line of a request whose answer has one already, with more in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        facts = call_facts()
        return facts is None or not facts.logged


def log_json() -> None:
    """From now on, in this process."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonLines())
    access = logging.getLogger(_ACCESS)
    if not any(isinstance(each, OneLineAnAnswer) for each in access.filters):
        access.addFilter(OneLineAnAnswer())


def _trace_ids() -> dict[str, str]:
    from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

    span = get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": format_trace_id(span.trace_id), "span_id": format_span_id(span.span_id)}
