"""Request ids in and out, and JSON log lines: one for each answer, with the request's fields."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextvars import copy_context
from io import StringIO
from typing import Any

import pytest
from fake_model import FakeModel, original_of
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from v2 import picture, send

from florence.server.keys import ApiKeys, read_keys
from florence.server.observability.access_log import A_SECOND, ACCESS, FIRST, FewAlike
from florence.server.observability.json_log import JsonLines, OneLineAnAnswer
from florence.server.observability.request_ids import RequestIds, begin_call
from florence.server.outcomes import log_answer

KEY = "k" * 32
access = logging.getLogger("test.access")


@pytest.fixture
def lines() -> Iterator[StringIO]:
    """The service's log as JSON lines."""
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger("florence.service"), access]
    levels = [logger.level for logger in loggers]
    access.addFilter(OneLineAnAnswer())
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield written
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


async def _answer(request: Request) -> Response:
    """Log an answer of the model for `/caption`; reply without content elsewhere."""
    if request.url.path == "/caption":
        ApiKeys(read_keys([f"alice:{KEY}"], "here")).check(f"Bearer {KEY}")
        log_answer(original_of(FakeModel().submit(picture(), "<CAPTION>").result(30)))
    return Response()


async def _logged(scope: object, receive: object, send: object) -> None:
    """An app in the service's order: BentoML's access log is outside of ids, and writes after the answer."""
    app = RequestIds(Starlette(routes=[Route("/{path:path}", _answer, methods=["POST"])]))
    await app(scope, receive, send)  # type: ignore[arg-type]
    access.info("%s", scope["path"])  # type: ignore[index]


def test_an_answer_has_one_line_of_json(lines: StringIO) -> None:
    """An answer has one line with task, outcome, tokens, times, request id and the key's name, but not the
    key."""
    send(_logged, "POST", "/caption", headers={"x-request-id": "mine"})  # type: ignore[arg-type]
    (line,) = lines.getvalue().splitlines()
    fields = json.loads(line)
    expected = {"task": "<CAPTION>", "outcome": "stop", "tokens": 3, "request_id": "mine", "key": "alice"}
    assert expected.items() <= fields.items()
    assert {"time", "level", "logger", "message", "checkpoint", "total_s", "queue_s"} <= fields.keys()
    assert KEY not in line


def test_a_request_without_an_answer_has_its_access_line(lines: StringIO) -> None:
    """A request without an answer has its access line."""
    send(_logged, "POST", "/other")  # type: ignore[arg-type]
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["message"] == "/other"


@given(st.text())
def test_any_text_is_one_line(text: str) -> None:
    """Any text, with line breaks, quotes and lone surrogates, is one line and is read back unchanged."""
    record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (text,), None)
    line = JsonLines().format(record)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["message"] == text


def test_a_traceback_is_in_its_line() -> None:
    """A traceback is in its line as the field `error`."""
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "failed", None, sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["error"]


@pytest.mark.parametrize("given", ["a", "0af7-1_x", "x" * 128, "a/b:c@d"])
def test_a_client_s_id_comes_back(given: str) -> None:
    """A client's id is returned in the same header."""
    app: Any = RequestIds(Starlette(routes=[Route("/", _answer, methods=["POST"])]))
    reply = send(app, "POST", "/", headers={"X-Request-Id": given})
    assert reply.headers["X-Request-Id"] == given


@given(st.none() | st.text())
def test_no_other_id_does(given: str | None) -> None:
    """A missing or invalid id is replaced by a new, unique one."""
    first, second = copy_context().run(begin_call, given), copy_context().run(begin_call, given)
    if first != given:
        assert first != second
        assert len(first) == 32


def test_lines_that_cost_a_client_nothing_are_few() -> None:
    """Similar lines are limited to some at first and then a few a second, and the next one gives the
    number left out. Lines of answers, errors and other kinds are all written."""
    now = [0.0]
    few = FewAlike(lambda: now[0])

    line = "%s (%s) (%s) %.3fms"

    def written(count: int, *args: object, level: int = logging.INFO, msg: str = line) -> int:
        made = [logging.LogRecord(ACCESS, level, "x", 1, msg, args, None) for _ in range(count)]
        return sum(few.filter(each) for each in made)

    refused = ("1.2.3.4:5", "scheme=http,method=GET,path=/a,method=POST,", "status=404", 1.0)
    answered = ("1.2.3.4:5", "scheme=http,method=POST,path=/caption", "status=200", 1.0)
    assert written(5000, *refused) == FIRST
    assert written(5000, *answered) == 5000
    assert written(5000, *refused, level=logging.ERROR) == 5000
    assert written(10, msg="another") == 10
    now[0] = 2.0
    record = logging.LogRecord(ACCESS, logging.INFO, "x", 1, line, refused, None)
    assert few.filter(record)
    assert f"({5000 - FIRST} lines like this left out)" in record.getMessage()
    assert written(5000, *refused) == 2 * A_SECOND - 1
