"""The middleware alone: body limits, clients that leave, time limits, and one format of errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from clocked import ClockedLoop, run_clocked, skip
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from waiting import PATIENCE_S

from florence.answers.answer import Answer
from florence.errors import Closed
from florence.server.http.bodies import BodyBudget
from florence.server.http.error_bodies import ErrorBodies
from florence.server.http.middleware import BodyLimit, CancelOnDisconnect, TimeLimit
from florence.server.outcomes import await_answer
from florence.server.replies import reply_or_error

LIMIT = 1024


async def _echo_length(request: Request) -> Response:
    """Reply with the length of the body."""

    async def read() -> Response:
        return JSONResponse({"length": len(await request.body())})

    return await reply_or_error(read())


def send(content: Any, **headers: str) -> httpx.Response:
    """The reply to one POST to an app that reads its body, behind the limit."""
    app = Starlette(
        routes=[Route("/", _echo_length, methods=["POST"])],
        middleware=[Middleware(BodyLimit, max_bytes=LIMIT, budget=BodyBudget(4 * LIMIT, 60.0))],
    )

    async def sent() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post("/", content=content, headers=headers)

    return asyncio.run(sent())


async def _chunks(count: int, size: int = 100) -> AsyncIterator[bytes]:
    """A body of `count` chunks."""
    for _ in range(count):
        yield b"x" * size


@pytest.mark.parametrize("length", [0, 1, LIMIT])
def test_bodies_up_to_the_limit_pass(length: int) -> None:
    """A body of up to the limit is accepted."""
    assert send(b"x" * length).json() == {"length": length}


def test_longer_bodies_are_refused_with_the_limit() -> None:
    """A longer body is a 413 with the limit and the setting's name."""
    reply = send(b"x" * (LIMIT + 1))
    assert reply.status_code == 413
    assert reply.json() == {
        "error": "the request's body is larger than the 1024 bytes allowed (FLORENCE_MAX_BODY_BYTES)"
    }


@pytest.mark.parametrize(("count", "status"), [(10, 200), (11, 413), (1000, 413)])
def test_bodies_without_a_length_are_counted_as_they_arrive(count: int, status: int) -> None:
    """A chunked body is counted as it arrives, and is refused beyond the limit."""
    assert send(_chunks(count)).status_code == status


@pytest.mark.parametrize(
    ("original", "text"),
    [
        (PlainTextResponse("Not Found", 404), "Not Found"),
        (JSONResponse([{"error": "a list"}], 400), "a list"),
        (JSONResponse({"error": "text", "detail": ["more"]}, 400), "text"),
        (JSONResponse({"error": "as it should be"}, 503, {"Retry-After": "3"}), "as it should be"),
        (JSONResponse({"detail": "other"}, 500), "Internal Server Error"),
        (Response(b"\xff\xfe", 400), "\ufffd\ufffd"),
        (Response(b"", 405), "Method Not Allowed"),
    ],
)
def test_every_error_body_becomes_one_object_with_one_text(original: Response, text: str) -> None:
    """Each error body becomes {"error": "..."}; status and other headers stay."""
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(ErrorBodies(original)({"type": "http", "method": "GET"}, receive, collect))
    assert messages[0]["status"] == original.status_code
    headers = dict(messages[0]["headers"])
    body = b"".join(message["body"] for message in messages[1:])
    assert json.loads(body) == {"error": text}
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"content-type"] == b"application/json"
    assert headers.get(b"retry-after", b"").decode() == original.headers.get("retry-after", "")


def test_an_unexpected_exception_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is a 500, since BentoML's time limit waits for an answer; its traceback is
    in the log and not in the reply."""
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("secret")

    asyncio.run(ErrorBodies(broken)({"type": "http", "method": "GET"}, _never, collect))
    assert messages[0]["status"] == 500
    assert b"secret" not in messages[1]["body"]
    assert "ZeroDivisionError: secret" in caplog.text


def test_good_answers_pass_unread() -> None:
    """A good answer is not changed, even if it looks like an error."""
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    good = JSONResponse([{"error": "data"}])
    asyncio.run(ErrorBodies(good)({"type": "http", "method": "GET"}, _never, collect))
    assert messages[1]["body"] == b'[{"error":"data"}]'


async def _never() -> Any:
    """Wait forever."""
    await asyncio.Event().wait()


class _Client:
    """A client that sends an empty body, and leaves when `leaves` is set."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.gone = asyncio.Event()  # set once `receive` has reported that it left
        self.sent = False
        self.messages: list[Any] = []

    async def receive(self) -> Any:
        """The empty body, then the disconnect."""
        if not self.sent:
            self.sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leaves.wait()
        self.gone.set()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Keep the message."""
        self.messages.append(message)
        if message["type"] == "http.response.body":
            self.leaves.set()  # a server reports a disconnect after the answer


SCOPE = {"type": "http", "method": "POST", "path": "/caption"}


def test_a_client_that_leaves_cancels_its_work() -> None:
    """When a client leaves, its future is cancelled, its request ends with status 499, and no error is
    raised."""

    async def scenario() -> tuple[Future[Answer], list[Any]]:
        client = _Client()
        future: Future[Answer] = Future()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            asyncio.get_running_loop().call_soon(client.leaves.set)
            await await_answer(future, PATIENCE_S)

        await asyncio.wait_for(CancelOnDisconnect(app)(SCOPE, client.receive, client.send), PATIENCE_S)
        return future, client.messages

    future, messages = asyncio.run(scenario())
    assert future.cancelled()
    assert messages[0]["status"] == 499


def test_work_after_the_answer_is_not_cancelled() -> None:
    """Work after the answer ends normally, although servers report a disconnect then."""

    async def scenario() -> bool:
        client = _Client()
        finished = False

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal finished
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})
            await client.gone.wait()
            for _ in range(10):  # give a cancellation time to arrive
                await asyncio.sleep(0)
            finished = True

        await asyncio.wait_for(CancelOnDisconnect(app)(SCOPE, client.receive, client.send), PATIENCE_S)
        return finished

    assert asyncio.run(scenario())


def test_an_apps_own_error_comes_out() -> None:
    """The app's own exception passes through."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        client = _Client()
        await CancelOnDisconnect(broken)(SCOPE, client.receive, client.send)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(scenario())


def test_a_future_cancelled_by_the_model_is_a_503_and_not_a_cancelled_caller() -> None:
    """A future cancelled by a stopping engine is a Closed error that asks to send the request again; the
    caller is not cancelled."""
    future: Future[Answer] = Future()
    future.cancel()
    with pytest.raises(Closed, match="send the request again"):
        asyncio.run(await_answer(future, PATIENCE_S))


def limited(app: Any) -> list[Any]:
    """The messages that an app sends behind a time limit of `PATIENCE_S`."""
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/"}
    run_clocked(TimeLimit(app, PATIENCE_S)(scope, _never, collect))
    return messages


def test_an_answer_that_does_not_begin_in_time_is_a_504() -> None:
    """An answer that does not begin in time is a 504."""

    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        skip(PATIENCE_S)
        await receive()

    start, body = limited(hangs)
    assert (start["status"], b"not finished within" in body["body"]) == (504, True)


def test_an_answer_that_has_begun_may_take_its_time() -> None:
    """An answer that has begun has no time limit, and leaves no timer, which would keep the request in
    memory."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        skip(PATIENCE_S)
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"x"})
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ClockedLoop)
        assert all(timer.cancelled() for timer in loop.timers)

    assert [message["type"] for message in limited(slow)] == [
        "http.response.start",
        "http.response.body",
    ]
