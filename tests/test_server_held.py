"""Large answers: sent in pieces, within the budget of bodies, and cached where all clients get the same."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message

from florence.server.http.bodies import BodyBudget
from florence.server.http.held import PIECE, HeldBody, LargeAnswers, send_in_pieces
from florence.server.http.middleware import BodyLimit
from florence.server.observability import http_metrics
from florence.server.observability.request_ids import RequestIds


def sent(body: bytes, *, more: bool) -> list[Message]:
    """The messages in which a body is sent."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(send_in_pieces({"type": "http.response.body", "body": body, "more_body": more}, send))
    return messages


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5])
@pytest.mark.parametrize("more", [False, True])
def test_pieces_are_the_body(size: int, more: bool) -> None:
    """The pieces are the body, none is too large, and only the last ends what the message ended."""
    body = random.Random(size).randbytes(size)
    messages = sent(body, more=more)
    assert b"".join(each["body"] for each in messages) == body
    assert all(len(each["body"]) <= PIECE for each in messages)
    assert [each["more_body"] for each in messages] == [True] * (len(messages) - 1) + [more]


def client_of(size: int, budget: int) -> TestClient:
    """A client of an app with an answer of this many bytes."""

    async def large(request: Request) -> Response:
        return Response(bytes(size))

    app = LargeAnswers(Starlette(routes=[Route("/", large)]))
    return TestClient(RequestIds(BodyLimit(app, 1000, BodyBudget(budget, 60.0))))


def test_an_answer_counts_while_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer counts in the budget while it is sent; without room it is replaced by a 503."""
    monkeypatch.setattr("florence.server.http.bodies.PATIENCE_S", 0.01)
    roomy = client_of(5 * PIECE, 6 * PIECE)
    assert [len(roomy.get("/").content) for _ in range(3)] == [5 * PIECE] * 3
    refused = client_of(5 * PIECE, 4 * PIECE).get("/")
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert list(refused.json()) == ["error"]


def test_a_kept_body_is_sent_to_those_that_do_not_have_it() -> None:
    """A cached body is sent with its ETag; a client that has it gets a 304."""
    body = random.Random(0).randbytes(3 * PIECE)
    held = HeldBody(body, "text/plain")

    async def answer(request: Request) -> Response:
        return held.reply(request)

    client = TestClient(Starlette(routes=[Route("/", answer)]))
    first = client.get("/")
    assert hashlib.sha256(first.content).digest() == hashlib.sha256(body).digest()
    assert first.headers["content-length"] == str(len(body))
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        assert client.get("/", headers={"if-none-match": known}).status_code == 304
    assert client.get("/", headers={"if-none-match": '"other"'}).content == body


def test_one_scrape_answers_all_that_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred concurrent requests take two scrapes: one that was running, and one that started after
    they came."""
    scrapes: list[int] = []

    def scrape() -> bytes:
        scrapes.append(0)
        return b"number %d\n" % len(scrapes)

    monkeypatch.setattr(http_metrics, "scrape", scrape)
    answer = http_metrics.metrics_endpoint(lambda: "more 1\n")

    async def ask() -> list[Any]:
        first = asyncio.ensure_future(answer(Request({"type": "http"})))
        while not scrapes:
            await asyncio.sleep(0)
        others = [asyncio.ensure_future(answer(Request({"type": "http"}))) for _ in range(100)]
        await asyncio.sleep(0)
        others[0].cancel()  # a client that leaves causes no further scrape
        return [bytes((await each).body) for each in (first, *others[1:])]

    first, *others = asyncio.run(ask())
    assert first == b"number 1\nmore 1\n"
    assert set(others) == {b"number 2\nmore 1\n"}
