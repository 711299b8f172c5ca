"""Request bodies in transit: their memory, their time, and their encodings.

All bodies of a worker, from their first byte to their request's answer, share a memory budget. Knows ASGI
messages; nothing about what a body holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import anyio.to_thread
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from florence.errors import BodyTooLarge, Overloaded, SlowBody
from florence.server.v2.compression import PLAIN, decompressed

PATIENCE_S: Final = 2.0
"""Seconds that a body waits for its share of the budget."""
YOUNG_S: Final = 1.0
"""Seconds for which a body in transit is not given up for another."""
_KEY: Final = "florence.body"


@dataclass(eq=False)
class Body:
    """One request's share of the budget. `started`: when it began, by the event loop's clock. `size`: bytes
    held. `arrived`: whether the last byte is here. `given_up`: whether it makes room for others."""

    budget: BodyBudget
    started: float
    size: int = 0
    arrived: bool = False
    given_up: bool = False
    wait: asyncio.Timeout | None = None

    async def grow(self, size: int) -> None:
        """Take `size` more bytes of the budget; waits until they are free. Raises Overloaded after
        `PATIENCE_S`."""
        if size > self.budget.free:
            await self.budget.wait_for(self, size)
        self.budget.free -= size
        self.size += size

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
        """Make room for other bodies: the request that is receiving this one gets Overloaded."""
        self.given_up = True
        if self.wait is not None:
            self.wait.reschedule(asyncio.get_running_loop().time())


class BodyBudget:
    """The memory that the bodies of one worker may take together. Used on one event loop.

    When it is used up, the slowest bodies in transit are given up, and others wait: clients that send half a
    body can't starve those that send whole ones. `max_bytes`: the budget. `timeout_s`: seconds for one body
    to arrive.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.free = max_bytes
        self.max_bytes = max_bytes
        self._bodies: set[Body] = set()
        self._freed = asyncio.Event()

    def begin(self) -> Body:
        """Begin a new request's share of the budget; `end` frees it."""
        body = Body(self, asyncio.get_running_loop().time())
        self._bodies.add(body)
        return body

    def end(self, body: Body) -> None:
        """Free the body's share: its request is answered."""
        self._bodies.discard(body)
        self.free += body.size
        body.size = 0
        self._freed.set()

    @asynccontextmanager
    async def holding(self, size: int) -> AsyncIterator[None]:
        """A context that takes the share of a body of `size` bytes which is here already. Raises as
        `Body.grow`."""
        body = self.begin()
        body.arrived = True
        try:
            await body.grow(size)
            yield
        finally:
            self.end(body)

    def no_room(self) -> Overloaded:
        """The error of a body for which the budget has no room."""
        return Overloaded(
            f"the request bodies take all {self.max_bytes} bytes that are allowed "
            "(FLORENCE_BODY_MEMORY_BYTES); send the request again"
        )

    async def wait_for(self, body: Body, size: int) -> None:
        """Wait until `size` bytes are free for the body. Raises Overloaded after `PATIENCE_S`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while size > self.free:
                    if body.given_up:
                        raise self.no_room()
                    self._give_up_slowest(body, size, loop.time())
                    self._freed.clear()
                    with suppress(TimeoutError):  # bodies become old enough to be given up
                        async with asyncio.timeout(YOUNG_S / 4):
                            await self._freed.wait()
        except TimeoutError:
            raise self.no_room() from None

    def _give_up_slowest(self, body: Body, size: int, now: float) -> None:
        """Give up the bodies with the lowest transfer rates, until `size` bytes are or will be free."""
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


def keep_body(scope: Scope, body: Body) -> None:
    """Put the request's share of the budget into its scope, for the routes."""
    scope[_KEY] = body


def kept_body(scope: Scope) -> Body | None:
    """What `keep_body` put there; None where bodies have no budget."""
    body: Body | None = scope.get(_KEY)
    return body


async def read_body(receive: Receive) -> bytes | bytearray:
    """A request's whole body. Grows in place: joining its pieces would block the event loop for long. Raises
    ClientDisconnect."""
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
    """The body decoded, piece by piece in a thread, within the budget.

    `encoding`: its Content-Encoding; "" or "identity" for none. Raises UnknownEncoding, BodyTooLarge (more
    than `max_bytes`), ProtocolError for a body that is malformed, cut short, or followed by other bytes;
    Overloaded.
    """
    if encoding in PLAIN:
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
