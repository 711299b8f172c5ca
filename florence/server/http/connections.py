"""HTTP connections of a worker: heads and chunks are bounded, probes don't wait behind a burst, and a client
that does not read its answers is worked for no more.

uvicorn waits for a head as long as the client likes, reads all heads that have come before it answers any,
parses all that has come in one go (a body in chunks of one byte takes 0.6 s for 256 KB), and waits for ever
for a client to read. Here its protocol over h11 is extended. Knows bytes and time; nothing about what is
asked, but for the paths of probes.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any, Final

import h11
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

from florence.server.http.accepting import PROBES, Crowd, accept_with_care
from florence.server.http.receiving import Receiver

MOST_LINES: Final = 2_000
"""Parsed in one round of the event loop: a line takes up to 10 microseconds. A head that has more, and no end
yet, is refused."""
MOST_CHUNKS: Final = 10_000
"""Of one body, beside one for each `FULL_CHUNK` bytes."""
FULL_CHUNK: Final = 1024
MOST_WAITING_BYTES: Final = 65_536  # of a connection that waits for its turn
AHEAD_S: Final = 0.002
"""Seconds between two such requests of all connections that came before the answer to the one before them."""
AGAIN_S: Final = 0.1
"""Seconds until a head that waits for its turn is looked at again."""


class Turns:
    """Connections that have sent a head, in the order in which it came. One of them is read in each round of
    the event loop, so that a round takes no longer than a request's first step. Heads that came before the
    answer to the one before them are read less often: they cost their client nothing, and threads that
    compute need the interpreter's lock."""

    def __init__(self) -> None:
        self._waiting: deque[BoundedConnection] = deque()
        self._ahead: deque[BoundedConnection] = deque()

    def wait(self, connection: BoundedConnection) -> None:
        """Let it be read when it is its turn."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            connection.loop.call_soon(self._take)

    def wait_ahead(self, connection: BoundedConnection) -> None:
        """The same where it has sent several requests at once."""
        self._ahead.append(connection)
        if len(self._ahead) == 1:
            connection.loop.call_later(AHEAD_S, self._take_ahead)

    def _take(self) -> None:
        connection = self._waiting.popleft()
        if self._waiting:
            connection.loop.call_soon(self._take)
        connection.take_turn()

    def _take_ahead(self) -> None:
        connection = self._ahead.popleft()
        if self._ahead:
            connection.loop.call_later(AHEAD_S, self._take_ahead)
        connection.take_turn()


class BoundedParser(h11.Connection):
    """h11's parser, which refuses heads and trailers of too many lines, and bodies of too many chunks."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._lines = self._chunks = 0

    def receive_data(self, data: bytes) -> None:
        self._lines += data.count(b"\n")
        super().receive_data(data)

    def next_event(self) -> Any:
        """As h11's. A RemoteProtocolError too where it is refused."""
        event = super().next_event()
        if event is h11.PAUSED:
            return event
        if event is not h11.NEED_DATA:
            self._lines = 0
        elif self._lines > MOST_LINES:
            raise h11.RemoteProtocolError(f"a head of more than {MOST_LINES} lines")
        if isinstance(event, h11.Request):
            self._chunks = 0
        elif isinstance(event, h11.Data):
            self._chunks += FULL_CHUNK * event.chunk_end - len(event.data)
            if self._chunks > FULL_CHUNK * MOST_CHUNKS:
                raise h11.RemoteProtocolError("a body of too many chunks")
        return event


class BoundedConnection(H11Protocol):
    """uvicorn's protocol, bounded. turns, crowd: of all connections of the worker."""

    turns: Turns
    crowd: Crowd
    head_timeout_s: float
    unread_timeout_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.conn = BoundedParser()
        self._unread = bytearray()
        self._has_turn = False
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False  # whether a part of a head is here
        self._answered = False  # whether there was a whole one: what comes then may be the rest of its body
        self._receiver = Receiver(self.loop, transport, self.unread_timeout_s)
        self.crowd.count += 1
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._has_turn:
            self._unread += data
            self._pause_if_full()
        elif self._under_way() or data.startswith(PROBES):
            self._read(data)
        else:
            self._wait_for_turn(data)

    def take_turn(self) -> None:
        """Read what has come."""
        if self.transport.is_closing():
            self._unread.clear()
        elif not self._receiver.has_taken():
            self._receiver.watch(then=lambda: self.turns.wait_ahead(self))
        else:
            data, self._unread, self._has_turn = bytes(self._unread), bytearray(), False
            self.flow.resume_reading()
            self._read(data)

    def _wait_for_turn(self, data: bytes) -> None:
        self._unread += data
        self._has_turn = True
        self.turns.wait(self)
        self._pause_if_full()

    def _pause_if_full(self) -> None:
        if len(self._unread) > MOST_WAITING_BYTES:
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.clear()
        self._stop_waiting()
        self._receiver.stop()
        self.crowd.count -= 1
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The answer to bytes that are no HTTP, unless another has begun. A request whose body they are ends
        as if its client had left: h11 takes no answer to it any more."""
        cycle: Any = self.cycle
        if self._under_way():
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_refusal("400 Bad Request", "the request is not valid HTTP/1.1"))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._receiver.pauses()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._receiver.moves()

    def on_response_complete(self) -> None:
        if not self._receiver.has_taken():
            self._receiver.watch()
        self.crowd.rests(self)
        super().on_response_complete()

    def handle_events(self) -> None:
        """As uvicorn's; but a request that came with the one before it waits for a turn of its own."""
        if self._reading or self.conn.their_state is not h11.IDLE:
            super().handle_events()
        elif self.conn.trailing_data[0] and not self._has_turn:
            self._unset_keepalive_if_required()
            self._has_turn = True
            self.turns.wait_ahead(self)

    def _read(self, data: bytes) -> None:
        """Parse as much as one round of the event loop has time for; the rest in another turn."""
        end = _end_of_lines(data, MOST_LINES)
        self._reading = True
        if data:
            super().data_received(data[:end])
        else:  # to h11 it would be the end of the connection
            self.handle_events()
        self._reading = False
        self._begun = not self._under_way()
        self._answered = self._answered or not self._begun
        if self._begun:
            self._wait_for_head()
        else:
            self._stop_waiting()
        if end < len(data) and not self.transport.is_closing():
            self._wait_for_turn(data[end:])

    def _should_upgrade(self) -> bool:
        return False  # there are no websockets here: it is answered as any request

    def _under_way(self) -> bool:
        """Whether a request is being answered: what comes is its body."""
        cycle: Any = self.cycle  # None before the first head
        return cycle is not None and not cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self._give_up)
            self.crowd.rests(self)

    def _stop_waiting(self) -> None:
        self.crowd.works(self)
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

    def close_idle(self) -> None:
        """Make room for others."""
        self.transport.close()


def bounded(crowd: Crowd, head_timeout_s: float, unread_timeout_s: float) -> type[BoundedConnection]:
    """The protocol of the connections of one worker."""
    members = {
        "turns": Turns(),
        "crowd": crowd,
        "head_timeout_s": head_timeout_s,
        "unread_timeout_s": unread_timeout_s,
    }
    return type("Connection", (BoundedConnection,), members)


def bound_connections(head_timeout_s: float, unread_timeout_s: float, most: int) -> None:
    """In a worker, before uvicorn starts in it: let its connections be bounded ones, over h11 where another
    parser is installed too. most: at a time."""
    crowd = Crowd(most)
    auto.AutoHTTPProtocol = bounded(crowd, head_timeout_s, unread_timeout_s)
    accept_with_care(crowd, head_timeout_s)


def _end_of_lines(data: bytes, most: int) -> int:
    """Where so many lines of the data end; its length where it has no more."""
    if data.count(b"\n") <= most:
        return len(data)
    end = 0
    for _ in range(most):
        end = data.index(b"\n", end) + 1
    return end


def _too_slow(head_timeout_s: float) -> bytes:
    message = f"the request's head did not arrive within {head_timeout_s:g} s (FLORENCE_HEAD_TIMEOUT_S)"
    return _refusal("408 Request Timeout", message)


def _refusal(status: str, message: str) -> bytes:
    body = json.dumps({"error": message}).encode("ascii")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
