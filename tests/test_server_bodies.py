"""Bodies of requests: one memory budget, a time limit for each, and decompression in pieces."""

from __future__ import annotations

import asyncio
import gzip
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from clocked import run_clocked, skip
from starlette.types import Message

from florence.errors import BodyTooLarge, Overloaded, SlowBody
from florence.server.http import bodies
from florence.server.http.bodies import Body, BodyBudget, keep_body, plain_body, read_body
from florence.server.http.middleware import BodyLimit, Decompress
from florence.server.replies import json_reply, reply_or_error

LONG_S = 600.0


@asynccontextmanager
async def bodies_of(budget: BodyBudget, count: int) -> AsyncIterator[list[Body]]:
    """The bodies of `count` requests, which end with the block."""
    made = [budget.begin() for _ in range(count)]
    yield made
    for body in made:
        budget.end(body)
    assert budget.free == budget.max_bytes


def parts(*chunks: bytes, whole: bool = True) -> Callable[[], Awaitable[Message]]:
    """A client that sends these chunks, and then, unless the body is `whole`, nothing more."""
    left = list(chunks)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or not whole}

    return receive


def test_what_is_taken_comes_back() -> None:
    """A body's room is returned to the last byte when its request ends, in any order."""

    async def scenario() -> None:
        budget = BodyBudget(100, LONG_S)
        async with bodies_of(budget, 3) as (one, two, three):
            for body, size in ((one, 50), (two, 30), (three, 20)):
                await body.grow(size)
            assert budget.free == 0
            budget.end(two)
            await three.grow(30)
            assert budget.free == 0

    asyncio.run(scenario())


def test_a_body_waits_for_one_that_is_answered() -> None:
    """Where all bodies have arrived, none is dropped; the next one gets its room when a request ends."""

    async def scenario() -> None:
        budget = BodyBudget(100, LONG_S)
        async with bodies_of(budget, 2) as (old, new):
            await old.grow(100)
            old.arrived = True
            waiting = asyncio.ensure_future(new.grow(60))
            await asyncio.sleep(0)
            assert not waiting.done()
            budget.end(old)
            await waiting
            assert (budget.free, old.given_up) == (40, False)

    asyncio.run(scenario())


def test_without_room_in_time_a_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that finds no room in time is an Overloaded error that names the setting."""
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.01)

    async def scenario() -> None:
        async with bodies_of(BodyBudget(100, LONG_S), 2) as (old, new):
            await old.grow(100)
            old.arrived = True
            with pytest.raises(Overloaded, match="FLORENCE_BODY_MEMORY_BYTES"):
                await new.grow(1)

    asyncio.run(scenario())


def test_the_slowest_body_makes_room() -> None:
    """A client that stops in the middle of its body gets a 503 when another needs its room; the faster of
    two stays."""

    async def scenario() -> None:
        budget = BodyBudget(100, LONG_S)
        async with bodies_of(budget, 3) as (slow, fast, new):
            for body, size in ((slow, 40), (fast, 60)):
                await body.grow(size)
            receiving = [asyncio.ensure_future(body.receive(parts())) for body in (slow, fast)]
            await asyncio.sleep(0)
            skip(2 * bodies.YOUNG_S)
            growing = asyncio.ensure_future(new.grow(30))
            with pytest.raises(Overloaded):
                await receiving[0]
            budget.end(slow)
            await growing
            assert not receiving[1].done()
            receiving[1].cancel()

    run_clocked(scenario())


def test_a_body_that_stops_is_given_up() -> None:
    """A body that is not complete in its time is a SlowBody error."""

    async def scenario() -> None:
        async with bodies_of(BodyBudget(100, LONG_S), 1) as (body,):
            receive = parts(b"some", whole=False)
            await body.receive(receive)
            skip(LONG_S)
            with pytest.raises(SlowBody, match="FLORENCE_BODY_TIMEOUT_S"):
                await body.receive(receive)

    run_clocked(scenario())


def answered(
    receive: Callable[[], Awaitable[Message]], budget: BodyBudget, *headers: tuple[bytes, bytes]
) -> Any:
    """The (status, headers, body) of an app that replies with its body's length, behind limit and decoder."""
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def work() -> Any:
            return json_reply(len(await read_body(receive)))

        await (await reply_or_error(work()))(scope, receive, send)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers)}
    asyncio.run(BodyLimit(Decompress(app, 1000), 1000, budget)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(part["body"] for part in sent[1:])


def test_half_a_body_is_answered_with_408_and_the_connection_closes() -> None:
    """An incomplete body gets a 408, and its connection closes."""
    budget = BodyBudget(1000, 0.01)
    status, headers, _ = answered(parts(b"half", whole=False), budget)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert budget.free == 1000


def test_a_body_is_in_the_budget_until_its_answer() -> None:
    """A body counts in the budget until its answer."""
    budget = BodyBudget(1000, LONG_S)
    assert answered(parts(b"a" * 300, b"b" * 300), budget)[::2] == (200, b"600")
    assert budget.free == 1000


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_routes_behind_the_decoder_see_plain_bodies(pack: Callable[[bytes], bytes]) -> None:
    """Routes get decompressed bodies, within the same limit; a larger one is a 413, a broken one a 400, an
    unknown encoding a 501."""
    name = b"gzip" if pack is gzip.compress else b"deflate"
    header = (b"content-encoding", name)
    budget = BodyBudget(4000, LONG_S)
    assert answered(parts(pack(b"x" * 1000)), budget, header)[::2] == (200, b"1000")
    assert answered(parts(pack(b"x" * 1001)), budget, header)[0] == 413
    assert answered(parts(b"no " + name), budget, header)[0] == 400
    status, headers, _ = answered(parts(b"x"), budget, (b"content-encoding", b"br"))
    assert (status, headers[b"accept-encoding"]) == (501, b"gzip, deflate")
    assert budget.free == 4000


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
@pytest.mark.parametrize("dense", [False, True])
def test_decompressing_in_pieces_gives_the_whole(size: int, dense: bool) -> None:
    """Decompression in pieces gives the whole body, compressible or dense, and counts its size."""
    plain = random.Random(size).randbytes(size) if dense else bytes(size)

    async def scenario() -> None:
        async with bodies_of(BodyBudget(4 * 2**20, LONG_S), 1) as (body,):
            scope: dict[str, Any] = {}
            keep_body(scope, body)
            assert await plain_body(scope, gzip.compress(plain, 1), "gzip", size) == plain
            assert body.size == size

    asyncio.run(scenario())


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_refused_at_the_limit(pack: Callable[[bytes], bytes]) -> None:
    """A small body that unpacks to a hundred megabytes is refused, and never takes more memory than the
    limit."""
    bomb = pack(bytes(100_000_000))

    async def scenario() -> None:
        async with bodies_of(BodyBudget(8 * 2**20, LONG_S), 1) as (body,):
            scope: dict[str, Any] = {}
            keep_body(scope, body)
            with pytest.raises(BodyTooLarge):
                await plain_body(scope, bomb, "gzip" if pack is gzip.compress else "deflate", 3_000_000)
            assert body.size <= 3_000_000

    tracemalloc.start()
    try:
        asyncio.run(scenario())
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
