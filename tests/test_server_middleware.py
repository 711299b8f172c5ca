"""The middleware on its own: body limits, clients that leave, error bodies of one shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from florence.answers.answer import Answer
from florence.errors import Closed
from florence.server.http.bodies import BodyBudget
from florence.server.http.error_bodies import ErrorBodies
from florence.server.http.middleware import BodyLimit, CancelOnDisconnect, TimeLimit
from florence.server.outcomes import await_answer
from florence.server.replies import reply_or_error

LIMIT = 1024


async def _echo_length(request: Request) -> Response:
    async def read() -> Response:
        return JSONResponse({"length": len(await request.body())})

    return await reply_or_error(read())


def send(content: Any, **headers: str) -> httpx.Response:
    """One POST to an app that reads its body, behind the limit."""
    app = Starlette(
        routes=[Route("/", _echo_length, methods=["POST"])],
        middleware=[Middleware(BodyLimit, max_bytes=LIMIT, budget=BodyBudget(4 * LIMIT, 60.0))],
    )

    async def sent() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post("/", content=content, headers=headers)

    return asyncio.run(sent())


async def _chunks(count: int, size: int = 100) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


@pytest.mark.parametrize("length", [0, 1, LIMIT])
def test_bodies_up_to_the_limit_pass(length: int) -> None:
    """The limit itself is allowed."""
    assert send(b"x" * length).json() == {"length": length}


def test_longer_bodies_are_refused_with_the_limit() -> None:
    """413, with what is allowed and the setting's name."""
    reply = send(b"x" * (LIMIT + 1))
    assert reply.status_code == 413
    assert reply.json() == {
        "error": "the request's body is larger than the 1024 bytes allowed (FLORENCE_MAX_BODY_BYTES)"
    }


@pytest.mark.parametrize(("count", "status"), [(10, 200), (11, 413), (1000, 413)])
def test_bodies_without_a_length_are_counted_as_they_arrive(count: int, status: int) -> None:
    """Chunked bodies can't get around the limit, and are not kept beyond it."""
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
    """Whatever shape an error had, clients see {"error": "..."}; status and other headers stay."""
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
    """BentoML's time limit waits for an answer; the log has the traceback, the client no word of it."""
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
    """An answer is not touched, whatever it holds."""
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    good = JSONResponse([{"error": "data"}])
    asyncio.run(ErrorBodies(good)({"type": "http", "method": "GET"}, _never, collect))
    assert messages[1]["body"] == b'[{"error":"data"}]'


async def _never() -> Any:
    await asyncio.Event().wait()


class _Client:
    """A client that sends an empty body, and leaves when it is told to."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.gone = asyncio.Event()  # set once `receive` has said that it left
        self.sent = False
        self.messages: list[Any] = []

    async def receive(self) -> Any:
        if not self.sent:
            self.sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leaves.wait()
        self.gone.set()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body":
            self.leaves.set()  # as a server reports it


SCOPE = {"type": "http", "method": "POST", "path": "/caption"}


def test_a_client_that_leaves_cancels_its_work() -> None:
    """The future that the model works on is cancelled, the request ends as 499, and nothing is raised."""

    async def scenario() -> tuple[Future[Answer], list[Any]]:
        client = _Client()
        future: Future[Answer] = Future()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            asyncio.get_running_loop().call_soon(client.leaves.set)
            await await_answer(future, 5.0)

        await asyncio.wait_for(CancelOnDisconnect(app)(SCOPE, client.receive, client.send), 5)
        return future, client.messages

    future, messages = asyncio.run(scenario())
    assert future.cancelled()
    assert messages[0]["status"] == 499


def test_work_after_the_answer_is_not_cancelled() -> None:
    """Servers report a client that has its answer as gone; what runs after the answer still ends."""

    async def scenario() -> bool:
        client = _Client()
        finished = False

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal finished
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})
            await client.gone.wait()
            for _ in range(10):  # turns of the loop, in which it would be cancelled
                await asyncio.sleep(0)
            finished = True

        await asyncio.wait_for(CancelOnDisconnect(app)(SCOPE, client.receive, client.send), 5)
        return finished

    assert asyncio.run(scenario())


def test_an_apps_own_error_comes_out() -> None:
    """The middleware hides no exception."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        client = _Client()
        await CancelOnDisconnect(broken)(SCOPE, client.receive, client.send)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(scenario())


def test_a_future_cancelled_by_the_model_is_a_503_and_not_a_cancelled_caller() -> None:
    """An engine that stops cancels what waits; the client hears that it may come again."""
    future: Future[Answer] = Future()
    future.cancel()
    with pytest.raises(Closed, match="send the request again"):
        asyncio.run(await_answer(future, 5.0))


def limited(app: Any, timeout_s: float) -> list[Any]:
    """What an app behind the time limit sends."""
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/"}
    asyncio.run(TimeLimit(app, timeout_s)(scope, _never, collect))
    return messages


def test_an_answer_that_does_not_begin_in_time_is_a_504() -> None:
    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    start, body = limited(hangs, 0.01)
    assert (start["status"], b"not finished within" in body["body"]) == (504, True)


def test_an_answer_that_has_begun_may_take_its_time() -> None:
    """And a request that is answered leaves no timer behind, which would keep all of it until it is due."""
    loops: list[Any] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"x"})
        assert not [timer for timer in loops[0]._scheduled if not timer.cancelled()]

    assert [message["type"] for message in limited(slow, 0.01)] == [
        "http.response.start",
        "http.response.body",
    ]
