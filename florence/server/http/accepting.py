"""New connections of a worker: they cost little until they send something, and health probes go first.

asyncio accepts all waiting connections in one go, and makes a transport, a task and a protocol for each:
thousands that send nothing block the event loop, while the kernel drops others. Here a connection is a bare
socket until its first bytes arrive; where there are too many, the one that has been idle longest is closed,
as nginx does. Knows sockets; of requests only the first bytes of a probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from uvicorn.loops import auto

from florence.server.http.paths import HEALTH
from florence.server.log import logger

ACCEPTED_AT_ONCE: Final = 512
"""Connections accepted in one iteration of the event loop, some 10 microseconds each."""
MADE_AT_ONCE: Final = 8  # protocols made in one iteration, some 100 microseconds each
SPARE: Final = 256
"""Connections accepted beyond the limit: one of them may be a probe's."""
OTHER_FILES: Final = 1024  # that a worker may have open beside its connections
AGAIN_S: Final = 0.1
PROBES: Final = tuple(
    b"%b %b " % (method, path) for method in (b"GET", b"HEAD") for path in map(str.encode, HEALTH)
)
_LONGEST: Final = max(map(len, PROBES))


def refusal(status: str, message: str, more: str = "") -> bytes:
    """An answer of HTTP/1.1 after which the connection is closed. `more`: further header lines."""
    body = json.dumps({"error": message}).encode("ascii")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{more}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class Crowd:
    """A worker's connections that have a protocol. `count`: how many there are. `max_connections`: the limit,
    silent connections included."""

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.count = 0
        self._idle: dict[asyncio.Transport, None] = {}  # in the order in which they became idle

    def rests(self, connection: asyncio.Transport) -> None:
        """From now on the connection waits for a request."""
        self._idle.pop(connection, None)
        self._idle[connection] = None

    def works(self, connection: asyncio.Transport) -> None:
        """The connection no longer waits for a request."""
        self._idle.pop(connection, None)

    def make_room(self) -> bool:
        """Close the connection that has waited longest for a request; False where none waits."""
        for connection in self._idle:
            del self._idle[connection]
            connection.close()
            return True
        return False


class Acceptor:
    """Accepts connections on one socket, in place of an `asyncio.Server`. `make`: makes a protocol. `tls`:
    None for plain TCP. `silent_s`: seconds that a connection has to send its first byte."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        make: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        crowd: Crowd,
        silent_s: float,
    ) -> None:
        self._loop, self._listening, self._make, self._tls = loop, listening, make, tls
        self._crowd, self._silent_s = crowd, silent_s
        self._silent: dict[int, tuple[socket.socket, float]] = {}  # descriptor -> socket, accepted when
        self._pending: deque[socket.socket] = deque()  # they have sent something
        self._made: set[asyncio.Task[None]] = set()
        self._first_bytes = select.epoll()
        loop.add_reader(self._first_bytes.fileno(), self._look)
        self._sweeper = loop.call_later(silent_s, self._sweep)
        self._listen()

    def _listen(self) -> None:
        if not self._sweeper.cancelled():
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more connections, and close those that have no protocol yet."""
        if self._sweeper.cancelled():
            return
        self._sweeper.cancel()
        self._loop.remove_reader(self._listening.fileno())
        self._loop.remove_reader(self._first_bytes.fileno())
        self._first_bytes.close()
        self._listening.close()
        for client in [*(each for each, _ in self._silent.values()), *self._pending]:
            client.close()
        self._silent.clear()
        self._pending.clear()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor is left, or no memory
                logger.error("can't accept connections: %s", error)
                self._make_room()
                self._loop.remove_reader(self._listening.fileno())
                self._loop.call_later(AGAIN_S, self._listen)
                return
            client.setblocking(False)
            self._silent[client.fileno()] = client, self._loop.time()
            self._first_bytes.register(client, select.EPOLLIN)
            if self._crowd.count + len(self._silent) + len(self._pending) > self._crowd.max_connections:
                self._make_room()

    def _make_room(self) -> None:
        """Close a connection: the oldest silent one where more than `SPARE` are silent (the latest may be
        about to send), else the one that has been idle longest."""
        if len(self._silent) > SPARE:
            self._forget(next(iter(self._silent))).close()
        else:
            self._crowd.make_room()

    def _forget(self, descriptor: int) -> socket.socket:
        self._first_bytes.unregister(descriptor)
        return self._silent.pop(descriptor)[0]

    def _sweep(self) -> None:
        now = self._loop.time()
        late = [each for each, (_, since) in self._silent.items() if now - since >= self._silent_s]
        for descriptor in late:
            self._forget(descriptor).close()
        self._sweeper = self._loop.call_later(min(1.0, self._silent_s), self._sweep)

    def _look(self) -> None:
        """Handle connections that have sent their first bytes, or whose client has left."""
        waited = bool(self._pending)
        for descriptor, _ in self._first_bytes.poll(0, ACCEPTED_AT_ONCE):
            client = self._forget(descriptor)
            try:
                first = client.recv(_LONGEST, socket.MSG_PEEK)
            except OSError:
                first = b""
            if not first:
                client.close()
            elif first.startswith(PROBES):
                self._hand_over(client)
            else:
                self._pending.append(client)
        if self._pending and not waited:
            self._loop.call_soon(self._take)

    def _take(self) -> None:
        for _ in range(min(MADE_AT_ONCE, len(self._pending))):
            client = self._pending.popleft()
            if self._crowd.count < self._crowd.max_connections or self._crowd.make_room():
                self._hand_over(client)
            else:
                _refuse(client, plain=self._tls is None)
        if self._pending:
            self._loop.call_soon(self._take)

    def _hand_over(self, client: socket.socket) -> None:
        made = self._loop.create_task(self._give_protocol(client))
        self._made.add(made)
        made.add_done_callback(self._made.discard)

    async def _give_protocol(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, client, ssl=self._tls)
        except OSError as error:  # the TLS handshake failed, or the client left
            logger.debug("no connection: %s", error)
            client.close()


def _refuse(client: socket.socket, *, plain: bool) -> None:
    message = "each connection has a request under way (FLORENCE_MAX_CONNECTIONS)"
    with contextlib.suppress(OSError):
        if plain:
            client.send(refusal("503 Service Unavailable", message, "Retry-After: 1\r\n"))
            client.recv(65_536)  # else closing would reset the connection, and lose the answer
    client.close()


class AcceptingLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers on given sockets are `Acceptor`s."""

    def __init__(self, crowd: Crowd, silent_s: float) -> None:
        super().__init__()
        self._crowd, self._silent_s = crowd, silent_s

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        """As asyncio's. uvicorn passes the socket that all workers listen on."""
        listening = options.get("sock")
        if listening is None:
            return await super().create_server(protocol_factory, *args, **options)
        listening.setblocking(False)
        listening.listen(max(options.get("backlog", 0), socket.SOMAXCONN))
        return Acceptor(self, listening, protocol_factory, options.get("ssl"), self._crowd, self._silent_s)


def accept_with_care(crowd: Crowd, silent_s: float) -> None:
    """Call in a worker before uvicorn starts: makes its event loop an `AcceptingLoop`, and raises the limit
    on open files for all connections of the crowd; where the hard limit forbids that, lowers its limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = crowd.max_connections + SPARE + OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    crowd.max_connections = max(1, min(crowd.max_connections, soft - SPARE - OTHER_FILES // 4))
    auto.auto_loop_factory = lambda use_subprocess=False: lambda: AcceptingLoop(crowd, silent_s)
