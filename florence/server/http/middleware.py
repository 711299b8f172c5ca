"""ASGI middleware around all routes: limits on bodies and time, API keys, clients that disconnect, branches
to other apps.

Knows HTTP messages only. The order is in `routing.middleware_of`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from florence.errors import (
    BodyTooLarge,
    ClientLeft,
    Closed,
    DeadlineExceeded,
    FlorenceError,
    SlowBody,
    Unauthorized,
)
from florence.server.http.bodies import Body, BodyBudget, keep_body, plain_body, read_body
from florence.server.http.paths import WITHOUT_MODEL
from florence.server.keys import ApiKeys
from florence.server.log import logger
from florence.server.replies import error_reply, json_reply
from florence.server.v2.compression import PIECE, PLAIN


@dataclass(frozen=True)
class HttpMiddleware(ABC):
    """Middleware around an app: HTTP requests go to `handle`, websockets and the lifespan unchanged to the
    app."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    @abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, or pass it on to the app."""


def with_headers(send: Send, headers: Iterable[tuple[bytes, bytes]]) -> Send:
    """A `send` that puts these headers on an answer, read when it begins."""

    async def headed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return headed


@dataclass(frozen=True)
class Branch(HttpMiddleware):
    """Sends requests for some paths to their own app, past BentoML's routing and its errors. `takes`:
    whether a path is the branch's."""

    takes: Callable[[str], bool]
    branch: ASGIApp

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.branch if self.takes(scope["path"]) else self.app)(scope, receive, send)


@dataclass(frozen=True)
class NeedsKey(HttpMiddleware):
    """Refuses requests without one of the keys, before their body is read; `open_paths` need none."""

    keys: ApiKeys
    open_paths: frozenset[str]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in self.open_paths and scope["method"] != "OPTIONS":  # a browser's preflight
            try:
                self.keys.check(Headers(scope=scope).get("authorization"))
            except Unauthorized as error:
                return await error_reply(error, {"Connection": "close"})(scope, receive, send)
        await self.app(scope, receive, send)


@dataclass(frozen=True)
class WhileLoading(HttpMiddleware):
    """Answers 503 while `check_loaded` raises Closed, before a body is read, except on paths that need no
    model."""

    check_loaded: Callable[[], None]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] not in WITHOUT_MODEL:
                self.check_loaded()
        except Closed as error:
            return await error_reply(error)(scope, receive, send)
        await self.app(scope, receive, send)


@dataclass(frozen=True)
class BodyLimit(HttpMiddleware):
    """Refuses bodies longer than `max_bytes` with 413, by Content-Length or, without one, while they arrive;
    with 408 those that don't arrive in time, and with 503 those for which the budget has no room.

    The rest of such a body is discarded, up to `max_bytes` more: a client that sends everything before it
    reads would otherwise see a closed connection instead of the answer.
    """

    max_bytes: int
    budget: BodyBudget

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        body = self.budget.begin()
        if length.isdecimal() and int(length) > self.max_bytes:
            if headers.get("expect", "").lower() != "100-continue":  # else the body is not sent yet
                await self._discard(body, receive)
            self.budget.end(body)
            reply = error_reply(BodyTooLarge(self.max_bytes), {"Connection": "close"})
            return await reply(scope, receive, send)
        received, closing = 0, list[tuple[bytes, bytes]]()

        async def counted() -> Message:
            nonlocal received
            if body.arrived:
                return await receive()
            try:
                message = await body.receive(receive)
                size = len(message.get("body", b""))
                received += size
                if received > self.max_bytes:
                    raise BodyTooLarge(self.max_bytes)
                await body.grow(size)
            except FlorenceError as error:
                closing[:] = [(b"connection", b"close")]
                if not isinstance(error, SlowBody):
                    await self._discard(body, receive)
                raise
            return message

        keep_body(scope, body)
        try:
            await self.app(scope, counted, with_headers(send, closing))
        finally:
            self.budget.end(body)

    async def _discard(self, body: Body, receive: Receive) -> None:
        left = self.max_bytes
        try:
            while left > 0 and not body.arrived:
                left -= len((await body.receive(receive)).get("body", b""))
        except FlorenceError:  # it takes too long, or is given up
            return


@dataclass(frozen=True)
class Decompress(HttpMiddleware):
    """Decodes a request's body from gzip or deflate, for routes that know no encodings."""

    max_bytes: int

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = Headers(scope=scope).get("content-encoding", "")
        if encoding in PLAIN:
            return await self.app(scope, receive, send)
        try:
            plain = await plain_body(scope, await read_body(receive), encoding, self.max_bytes)
        except (FlorenceError, ClientDisconnect) as error:
            return await error_reply(error)(scope, receive, send)
        rest, more = memoryview(plain), True

        async def pieces() -> Message:
            nonlocal rest, more
            if not more:
                return await receive()
            piece, rest = bytes(rest[:PIECE]), rest[PIECE:]
            more = len(rest) > 0
            return {"type": "http.request", "body": piece, "more_body": more}

        told = (b"content-encoding", b"content-length", b"transfer-encoding")
        kept = [(name, value) for name, value in scope["headers"] if name not in told]
        length = (b"content-length", str(len(plain)).encode())
        await self.app({**scope, "headers": [*kept, length]}, pieces, send)


@dataclass(frozen=True)
class TimeLimit(HttpMiddleware):
    """Answers 504 where an answer has not begun within `timeout` seconds. Replaces BentoML's, whose timers
    keep each request's context until they expire: at a hundred requests a second, hundreds of megabytes."""

    timeout: float

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = asyncio.timeout(self.timeout)

        async def begun(message: Message) -> None:
            if limit.when() is not None:
                limit.reschedule(None)
            await send(message)

        try:
            async with limit:
                await self.app(scope, receive, begun)
        except TimeoutError:
            if not limit.expired():
                raise
            await error_reply(DeadlineExceeded.of_request(self.timeout))(scope, receive, send)


class CancelOnDisconnect(HttpMiddleware):
    """Cancels the work on a POST request when its client leaves before the answer: the endpoint gets
    `asyncio.CancelledError` where it waits.

    The request ends with 499, nginx's status for it: no client reads that, but BentoML waits for some answer
    until its time limit, and its log and metrics count it.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        task: Any = asyncio.current_task()  # never None in a coroutine that runs
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        body_read = asyncio.Event()
        started = answered = left = False

        async def noted() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                body_read.set()
            return message

        async def watched(message: Message) -> None:
            nonlocal started, answered
            started = True
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def watch() -> None:
            nonlocal left
            await body_read.wait()
            await _disconnected(receive)
            if not answered:  # servers report a disconnect after an answer too
                left = True
                task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await self.app(scope, noted, watched)
        except asyncio.CancelledError:
            if not left or task.cancelling() > 1:  # cancelled by something else
                raise
        finally:
            watcher.cancel()
            if left:
                task.uncancel()
        if left:
            logger.info("the client of %s left before the answer", scope["path"])
        if left and not started:
            await json_reply({"error": str(ClientLeft())}, ClientLeft.status)(scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
