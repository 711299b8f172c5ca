"""Token streams, deadlines and clients that leave, over the v2 routes with a fake model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_model import FakeModel
from starlette.applications import Starlette
from v2 import INFER, PICTURE, failures, pending, request, send
from waiting import PATIENCE_S, until

from florence.errors import DeadlineExceeded, EngineError, Overloaded
from florence.server.http.middleware import CancelOnDisconnect

STREAM = "/v2/models/florence2/generate_stream"


def caption(**members: Any) -> dict[str, Any]:
    """A caption request with one beam and these other members."""
    return {"INPUT_IMAGE": PICTURE, "TASK_PROMPT": "<CAPTION>", "num_beams": 1, **members}


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    *parts, end = text.split("\n\n")
    assert end == ""
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_tokens_come_one_by_one_and_then_the_answer_of_generate(app: Starlette) -> None:
    """Each event names request and model, the texts join to the answer's text, and the last event is
    generate's answer."""
    reply = send(app, "POST", STREAM, json=caption(id="s"))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    *pieces, last = events(reply.text)
    head = {"id": "s", "model_name": "florence2", "model_version": "1"}
    assert pieces == [{**head, "text_output": "a"}, {**head, "text_output": " fake"}]
    assert last == send(app, "POST", STREAM.removesuffix("_stream"), json=caption(id="s")).json()
    assert json.loads(last["PARSED_JSON"]) == {"<CAPTION>": "a fake"}


@pytest.mark.parametrize(
    "body",
    [
        {"INPUT_IMAGE": PICTURE, "TASK_PROMPT": "<CAPTION>"},
        caption(TASK_PROMPT="<OD>"),
        caption(INPUT_IMAGE=[PICTURE] * 2, TASK_PROMPT=["<CAPTION>", "<OCR>"]),
    ],
)
def test_otherwise_the_whole_answer_is_one_event(app: Starlette, model: FakeModel, body: Any) -> None:
    """A request without one beam, a task without text and several rows are streamed as one event, as in
    Triton."""
    (event,) = events(send(app, "POST", STREAM, json=body).text)
    assert "PARSED_JSON" in event
    assert all(call.on_text is None for call in model.calls)


@pytest.mark.parametrize("task", ["<CAPTION>", "<OD>"])
@pytest.mark.parametrize("where", ["key", "parameters"])
def test_a_stream_of_several_beams_is_refused_with_the_reason(app: Starlette, task: str, where: str) -> None:
    """A stream of several beams is refused, since no part of an answer is final before its end."""
    beams = {"num_beams": 3} if where == "key" else {"parameters": {"num_beams": 3}}
    body = {"INPUT_IMAGE": PICTURE, "TASK_PROMPT": task, **beams}
    reply = send(app, "POST", STREAM, json=body)
    assert reply.status_code == 400
    assert "needs num_beams=1, got 3: beams compete until the last token" in reply.json()["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(Overloaded("full", retry_after_s=2.5), 503), (DeadlineExceeded("late"), 504), (EngineError("no"), 500)],
)
def test_what_fails_before_the_first_token_has_its_status(
    app: Starlette, model: FakeModel, error: Exception, status: int
) -> None:
    """A failure before the first token has its status."""
    model.error = error
    reply = send(app, "POST", STREAM, json=caption())
    assert (reply.status_code, reply.json()) == (status, {"error": str(error)})
    assert reply.headers.get("retry-after") == ("3" if status == 503 else None)


def test_what_fails_later_is_the_last_event(app: Starlette, model: FakeModel) -> None:
    """A failure after the first token is the last event, since the status has been sent."""
    model.error, model.fails_late = EngineError("the device failed"), True
    reply = send(app, "POST", STREAM, json=caption())
    assert reply.status_code == 200
    assert [event.get("error") for event in events(reply.text)] == [None, None, "the device failed"]
    assert failures(app.state.repository.find("florence2"))["BACKEND"] == 1


async def converse(
    app: Starlette, path: str, body: Any, leave: Callable[[list[Any]], Awaitable[None]]
) -> list[Any]:
    """The messages sent to a client that leaves when `leave` returns."""
    sent: list[Any] = []
    content = json.dumps(body).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await leave(sent)
        return {"type": "http.disconnect"}

    async def send_(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": []}
    await asyncio.wait_for(CancelOnDisconnect(app)(scope, receive, send_), PATIENCE_S)
    return sent


def test_a_client_that_leaves_its_stream_frees_its_place(app: Starlette, model: FakeModel) -> None:
    """A client that leaves after the first token cancels its request, which counts as CANCELED."""
    model.held = True
    sent = asyncio.run(converse(app, STREAM, caption(), lambda sent: until(lambda: len(sent) > 1)))
    assert b"text_output" in sent[1]["body"]
    assert model.calls[0].future.cancelled()
    assert failures(app.state.repository.find("florence2")) == {"CANCELED": 1}
    assert pending(app.state.repository.find("florence2")) == 0


@pytest.mark.parametrize("path", [INFER, STREAM.removesuffix("_stream")])
def test_a_client_that_leaves_frees_all_its_rows(app: Starlette, model: FakeModel, path: str) -> None:
    """A client that leaves cancels all its rows; the status in logs and metrics is 499."""
    model.held = True
    rows = [PICTURE] * 3, ["<CAPTION>"] * 3
    body = request(*rows) if path == INFER else caption(INPUT_IMAGE=rows[0], TASK_PROMPT=rows[1])
    sent = asyncio.run(converse(app, path, body, lambda _: until(lambda: len(model.calls) == 3)))
    assert sent[0]["status"] == 499
    assert all(call.future.cancelled() for call in model.calls)
    assert failures(app.state.repository.find("florence2")) == {"CANCELED": 1}


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(0, PATIENCE_S), (999, PATIENCE_S), (90_000_000, 90.0), (900_000_000, PATIENCE_S)],
)
def test_a_requests_own_timeout_is_its_deadline(
    app: Starlette, model: FakeModel, timeout: int, seconds: float
) -> None:
    """A request's timeout, in microseconds, is its deadline if it is below the service's; 0 and too short
    ones count as none."""
    parameters = {"timeout": timeout, "priority": 5}
    assert send(app, "POST", INFER, json=request(parameters=parameters)).status_code == 200
    assert model.calls[0].options == {"pictures": "original", "timeout_s": seconds}


def test_a_request_whose_time_is_up_is_answered_even_if_the_model_is_not_back(
    app: Starlette, model: FakeModel
) -> None:
    """A request whose time is over is a 504 and is cancelled, even while the model works."""
    model.held = True
    reply = send(app, "POST", INFER, json=request(parameters={"timeout": 50_000}))
    assert (reply.status_code, reply.json()) == (504, {"error": "the request was not finished within 0.05 s"})
    assert model.calls[0].future.cancelled()
    assert failures(app.state.repository.find("florence2")) == {"REJECTED": 1}


def test_each_infer_request_writes_one_line(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    """Each request has a log line with path, status, time, and the checkpoint or the error."""
    with caplog.at_level("INFO", "florence"):
        send(app, "POST", INFER, json=request())
        send(app, "POST", INFER, json=request(tasks=["<NOPE>"]))
    good, bad = (record.getMessage() for record in caplog.records if record.name == "florence.service")
    assert f"POST {INFER} 200 in " in good
    assert "<CAPTION> answered by fake: stop, 3 tokens" in good
    assert f"POST {INFER} 400 in " in bad
    assert "unknown task" in bad
