"""Request bodies on their way: their memory, their time, and their encodings.

All bodies of a worker, from their first byte to their request's answer, stay within a budget. Knows ASGI
messages; nothing about what a body holds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

import anyio.to_thread
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from florence.errors import BodyTooLarge, Overloaded, SlowBody
from florence.server.v2.compression import decompressed

PATIENCE_S: Final = 2.0
"""Seconds that a body waits for room."""
YOUNG_S: Final = 1.0
"""A body that has been on its way for less is not given up for another."""
_KEY: Final = "florence.body"


@dataclass(eq=False)
class Body:
    """One request's part of the budget. `arrived`: whether its last byte is here."""

    budget: BodyBudget
    started: float
    size: int = 0
    arrived: bool = False
    given_up: bool = False
    wait: asyncio.Timeout | None = None

    async def grow(self, size: int) -> None:
        """So many bytes more; waits until there is room. Overloaded if there is none in time."""
        await self.budget.take(self, size)

    async def receive(self, receive: Receive) -> Message:
        """The next message with bytes of the body, its last one, or a disconnect. Raises SlowBody where the
        body took too long, Overloaded where it was given up for others."""
        try:
            async with asyncio.timeout_at(self.started + self.budget.timeout_s) as self.wait:
                if self.given_up:
                    raise TimeoutError
                message = await receive()
        except TimeoutError:
            raise self.budget.no_room() if self.given_up else SlowBody(self.budget.timeout_s) from None
        finally:
            self.wait = None
        self.arrived = not message.get("more_body", False)
        return message

    def give_up(self) -> None:
        """Make room for other bodies: a request that waits for its next bytes gets Overloaded."""
        self.given_up = True
        if self.wait is not None:
            self.wait.reschedule(asyncio.get_running_loop().time())


class BodyBudget:
    """What the bodies of one worker may take together. Used on one event loop.

    Where it is used up, the slowest body that is still on its way is given up, and others wait. So clients
    that send half a body can't keep it from those that send whole ones. timeout_s: for one body to arrive.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.free = max_bytes
        self.max_bytes = max_bytes
        self._bodies: set[Body] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def begin(self) -> Body:
        """A request has come; see `end`."""
        body = Body(self, asyncio.get_running_loop().time())
        self._bodies.add(body)
        return body

    def end(self, body: Body) -> None:
        """It is answered, and its body gone."""
        self._bodies.discard(body)
        self.free += body.size
        body.size = 0
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def take(self, body: Body, size: int) -> None:
        """See `Body.grow`."""
        if size > self.free:
            await self._wait_for(body, size)
        self.free -= size
        body.size += size

    def no_room(self) -> Overloaded:
        """The error of a body for which there is no room."""
        return Overloaded(
            f"the bodies on their way fill the {self.max_bytes} bytes that they may take together "
            "(FLORENCE_BODY_MEMORY_BYTES); send the request again"
        )

    async def _wait_for(self, body: Body, size: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while size > self.free:
                    if body.given_up:
                        raise self.no_room()
                    self._give_up_slowest(body, size, loop.time())
                    waiter: asyncio.Future[None] = loop.create_future()
                    self._waiting.append(waiter)
                    again = loop.call_later(YOUNG_S / 4, _wake, waiter)
                    try:
                        await waiter
                    finally:
                        again.cancel()
                        self._waiting.remove(waiter)
        except TimeoutError:
            raise self.no_room() from None

    def _give_up_slowest(self, body: Body, size: int, now: float) -> None:
        """Give up bodies that have come slowest, until they make room for so many bytes more."""
        room = self.free + sum(each.size for each in self._bodies if each.given_up)
        slow = [
            each
            for each in self._bodies
            if each is not body
            and not (each.arrived or each.given_up)
            and each.size
            and now - each.started > YOUNG_S
        ]
        for each in sorted(slow, key=lambda each: each.size / (now - each.started)):
            if room >= size:
                return
            each.give_up()
            room += each.size


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def keep_body(scope: Scope, body: Body) -> None:
    """Let the routes behind find the request's part of the budget."""
    scope[_KEY] = body


def kept_body(scope: Scope) -> Body | None:
    """What `keep_body` kept; None where no budget is kept."""
    body: Body | None = scope.get(_KEY)
    return body


async def read_body(receive: Receive) -> bytes | bytearray:
    """A request's body. Grows in place: to join its pieces would hold the event loop for long."""
    whole: bytes | bytearray | None = None
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        if whole is None:
            whole = part
        elif part:
            whole = whole if isinstance(whole, bytearray) else bytearray(whole)
            whole += part
        more = message.get("more_body", False)
    return b"" if whole is None else whole


async def plain_body(
    scope: Scope, body: bytes | bytearray, encoding: str, max_bytes: int
) -> bytes | bytearray:
    """The body without its encoding, decompressed piece by piece in a thread, within the budget.

    encoding: "" or "identity" for none. Raises UnknownEncoding, BodyTooLarge (more than `max_bytes`),
    ProtocolError for a body that is malformed, cut short, or followed by other bytes; Overloaded.
    """
    if encoding in ("", "identity"):
        return body
    account = kept_body(scope)
    pieces, plain = decompressed(body, encoding), bytearray()
    while (piece := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
        if len(plain) + len(piece) > max_bytes:
            raise BodyTooLarge(max_bytes)
        if account is not None:
            await account.grow(len(piece))
        plain += piece
    return plain
