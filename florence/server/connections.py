"""HTTP connections of a worker: heads have a time limit, and probes don't wait behind a burst of requests.

uvicorn has neither. It waits for a head as long as the client likes, and reads all heads that have come
before it answers any. Here its protocol is extended, whichever of its two parsers it uses. Knows bytes and
time; nothing about what is asked, but for the paths of probes.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:
    H11Protocol = object

MOST_WAITING_BYTES: Final = 65_536  # of a connection that waits for its turn
AGAIN_S: Final = 0.1
"""Seconds until a head that waits for its turn is looked at again."""
_PROBES: Final = tuple(
    b"%b %b " % (method, path)
    for method in (b"GET", b"HEAD")
    for path in (b"/livez", b"/readyz", b"/healthz", b"/v2/health/live", b"/v2/health/ready")
)


class Turns:
    """Connections that have sent a head, in the order in which it came. One of them is read in each round of
    the event loop, so that a round takes no longer than a request's first step."""

    def __init__(self) -> None:
        self._waiting: deque[BoundedConnection] = deque()

    def wait(self, connection: BoundedConnection) -> None:
        """Let it be read when it is its turn."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            connection.loop.call_soon(self._take)

    def _take(self) -> None:
        connection = self._waiting.popleft()
        if self._waiting:
            connection.loop.call_soon(self._take)
        connection.take_turn()


class BoundedConnection(H11Protocol):
    """A mix-in before one of uvicorn's protocols. turns: of all connections of the worker."""

    turns: Turns
    head_timeout_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unread = bytearray()
        self._has_turn = False
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False  # whether a part of a head is here
        self._answered = False  # whether there was a whole one: what comes then may be the rest of its body
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._unread or self._has_turn:
            self._unread += data
            if len(self._unread) > MOST_WAITING_BYTES:
                self.flow.pause_reading()
        elif self._under_way() or data.startswith(_PROBES):
            self._read(data)
        else:
            self._unread += data
            self._has_turn = True
            self.turns.wait(self)

    def take_turn(self) -> None:
        """Read what has come."""
        data, self._unread, self._has_turn = bytes(self._unread), bytearray(), False
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._read(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.clear()
        self._stop_waiting()
        super().connection_lost(exc)

    def _read(self, data: bytes) -> None:
        super().data_received(data)
        self._begun = not self._under_way()
        self._answered = self._answered or not self._begun
        if self._begun:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def _under_way(self) -> bool:
        """Whether a request is being answered: what comes is its body."""
        cycle: Any = self.cycle  # None before the first head
        return cycle is not None and not cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.transport.is_closing() or self._under_way():
            return
        if self._has_turn:  # it is not the client that is slow now
            self._timer = self.loop.call_later(AGAIN_S, self._give_up)
            return
        if self._begun and not self._answered:
            self.transport.write(_too_slow(self.head_timeout_s))
        self.transport.close()


def bound_connections(head_timeout_s: float) -> None:
    """In a worker, before uvicorn starts in it: let its connections be bounded ones."""
    from uvicorn.protocols.http import auto

    usual: Any = getattr(auto.AutoHTTPProtocol, "usual", auto.AutoHTTPProtocol)  # of a service made before
    made: Any = type(
        "Connection",
        (BoundedConnection, usual),
        {"turns": Turns(), "head_timeout_s": head_timeout_s, "usual": usual},
    )
    auto.AutoHTTPProtocol = made


def _too_slow(head_timeout_s: float) -> bytes:
    message = f"the request's head did not arrive within {head_timeout_s:g} s (FLORENCE_HEAD_TIMEOUT_S)"
    body = json.dumps({"error": message}).encode("ascii")
    head = (
        "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
