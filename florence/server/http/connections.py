"""HTTP connections of a worker: heads and chunks are bounded, health probes don't wait behind a burst, and a
client that does not read its answers gets no further work done.

uvicorn has no time limit for a head, reads all heads that have arrived before it answers any, parses all
received bytes in one go (a body in chunks of one byte takes 0.6 s for 256 KB), and waits for ever for a
client to read. This module extends its protocol over h11. Knows bytes and time; of requests only the paths of
probes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import h11
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

from florence.server.http.accepting import PROBES, Crowd, accept_with_care, refusal
from florence.server.http.receiving import Receiver

MAX_LINES: Final = 2_000
"""Lines parsed in one iteration of the event loop: each takes up to 10 microseconds. A head that has more and
has not ended is refused."""
MAX_CHUNKS: Final = 10_000
"""Chunks of one body, in addition to one for each `FULL_CHUNK` bytes."""
FULL_CHUNK: Final = 1024
MAX_WAITING_BYTES: Final = 65_536  # received by a connection that waits for its turn
_FRAMINGS: Final = frozenset((b"content-length", b"transfer-encoding"))
AHEAD_S: Final = 0.002
"""Seconds between two pipelined requests (sent before the answer to the one before), over all connections.
They cost their client nothing, and threads that compute need the interpreter's lock (GIL)."""
AGAIN_S: Final = 0.1
"""Seconds until the time limit of a head that waits for its turn is checked again."""


class Turns:
    """Connections whose received bytes wait to be parsed, in order of arrival: one of them is read in each
    iteration of the event loop, so that an iteration takes no longer than a request's first step. `apart_s`:
    seconds between two of them instead."""

    def __init__(self, apart_s: float | None = None) -> None:
        self._apart_s = apart_s
        self._waiting: deque[BoundedConnection] = deque()

    def wait(self, connection: BoundedConnection) -> None:
        """Queue a connection for its turn."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            self._next(connection.loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._apart_s is None:
            loop.call_soon(self._take)
        else:
            loop.call_later(self._apart_s, self._take)

    def _take(self) -> None:
        connection = self._waiting.popleft()
        if self._waiting:
            self._next(connection.loop)
        connection.take_turn()


class BoundedParser(h11.Connection):
    """h11's parser, which refuses heads and trailers of too many lines, bodies of too many chunks, and bodies
    with two framings, which a proxy may read otherwise (request smuggling, RFC 9112, 6.1)."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._lines = self._chunks = 0

    def receive_data(self, data: bytes) -> None:
        self._lines += len(_line_ends(data, MAX_LINES + 1))
        super().receive_data(data)

    def next_event(self) -> Any:
        """As h11's. Raises RemoteProtocolError also for what this class refuses."""
        event = super().next_event()
        if event is h11.PAUSED:
            return event
        if event is not h11.NEED_DATA:
            self._lines = 0
        elif self._lines > MAX_LINES:
            raise h11.RemoteProtocolError(f"a head of more than {MAX_LINES} lines")
        if isinstance(event, h11.Request):
            self._chunks = 0
            if {name for name, _ in event.headers} >= _FRAMINGS:
                raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        elif isinstance(event, h11.Data):
            self._chunks += FULL_CHUNK * event.chunk_end - len(event.data)
            if self._chunks > FULL_CHUNK * MAX_CHUNKS:
                raise h11.RemoteProtocolError("a body of too many chunks")
        return event


class BoundedConnection(H11Protocol):
    """uvicorn's protocol, bounded. Shared by all connections of the worker: `crowd`; `turns` of heads;
    `ahead`, those of pipelined requests, and of clients that have not read their answer yet.

    `head_timeout_s`: seconds for a head to arrive. `unread_timeout_s`: seconds without a byte read by the
    client until the connection is closed.
    """

    turns: Turns
    ahead: Turns
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
        self._answered = False  # whether a whole head has arrived: later bytes may be its body's
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
        """Parse the received bytes, once the client has read the answer before them."""
        if self.transport.is_closing():
            self._unread.clear()
        elif not self._receiver.has_taken():
            self._receiver.watch(then=lambda: self.ahead.wait(self))
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
        if len(self._unread) > MAX_WAITING_BYTES:
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.clear()
        self._stop_waiting()
        self._receiver.stop()
        self.crowd.count -= 1
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, unless an answer has begun. If they are in a request's body, that
        request ends as if its client had left: h11 accepts no answer to it any more."""
        cycle: Any = self.cycle
        if self._under_way():
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(refusal("400 Bad Request", "the request is not valid HTTP/1.1"))
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
        self.crowd.rests(self.transport)
        super().on_response_complete()

    def handle_events(self) -> None:
        """As uvicorn's, but a pipelined request waits for a turn of its own."""
        if self._reading or self.conn.their_state is not h11.IDLE:
            super().handle_events()
        elif self.conn.trailing_data[0] and not self._has_turn:
            self._unset_keepalive_if_required()
            self._has_turn = True
            self.ahead.wait(self)

    def _read(self, data: bytes) -> None:
        """Parse up to `MAX_LINES` lines; the rest waits for another turn."""
        end = _end_of_lines(data, MAX_LINES)
        self._reading = True
        if data:
            super().data_received(data[:end])
        else:  # to h11, empty data is the end of the connection
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
        return False  # there are no websockets: answered as any request

    def _under_way(self) -> bool:
        """Whether a request is being answered: received bytes are its body."""
        cycle: Any = self.cycle  # None before the first head
        return cycle is not None and not cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self._give_up)
            self.crowd.rests(self.transport)

    def _stop_waiting(self) -> None:
        self.crowd.works(self.transport)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.transport.is_closing() or self._under_way():
            return
        if self._has_turn:  # the delay is this worker's, not the client's
            self._timer = self.loop.call_later(AGAIN_S, self._give_up)
            return
        if self._begun and not self._answered:
            self.transport.write(_too_slow(self.head_timeout_s))
        self.transport.close()


def bounded(crowd: Crowd, head_timeout_s: float, unread_timeout_s: float) -> type[BoundedConnection]:
    """The protocol class of one worker's connections."""
    members = {
        "turns": Turns(),
        "ahead": Turns(AHEAD_S),
        "crowd": crowd,
        "head_timeout_s": head_timeout_s,
        "unread_timeout_s": unread_timeout_s,
    }
    return type("Connection", (BoundedConnection,), members)


def bound_connections(head_timeout_s: float, unread_timeout_s: float, max_connections: int) -> None:
    """Call in a worker before uvicorn starts: makes its connections bounded ones, over h11 even where another
    parser is installed. `max_connections`: at a time. The time limits are those of `BoundedConnection`."""
    crowd = Crowd(max_connections)
    auto.AutoHTTPProtocol = bounded(crowd, head_timeout_s, unread_timeout_s)
    accept_with_care(crowd, head_timeout_s)


def _end_of_lines(data: bytes, max_lines: int) -> int:
    """Where the first `max_lines` lines end; the data's length where it has no more."""
    ends = _line_ends(data, max_lines + 1)
    return ends[max_lines - 1] if len(ends) > max_lines else len(data)


def _line_ends(data: bytes, max_lines: int) -> list[int]:
    """Where the first `max_lines` lines end. A search takes a fifth of the time of `bytes.count`."""
    ends: list[int] = []
    while len(ends) < max_lines and (end := data.find(b"\n", ends[-1] if ends else 0) + 1):
        ends.append(end)
    return ends


def _too_slow(head_timeout_s: float) -> bytes:
    message = f"the request's head did not arrive within {head_timeout_s:g} s (FLORENCE_HEAD_TIMEOUT_S)"
    return refusal("408 Request Timeout", message)
