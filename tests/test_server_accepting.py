"""Connections of a real HTTP server that are many, silent, or do not read, while others are served."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from clocked import ClockedLoop, skip
from waiting import PATIENCE_S, until

from florence.server.http.accepting import SPARE, AcceptingLoop, Crowd
from florence.server.http.connections import bounded
from florence.server.http.receiving import LOOK_S, MOST_UNREAD

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
PROBE = GET % b"v2/health/live"
LARGE = bytes(4_000_000)  # more than both systems take for a client that does not read


class Served:
    """An app with a large answer at `/large`, one that waits for the test at `/wait`, and 204 elsewhere.
    `asked` has the paths in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = asyncio.Event()
        self.clients: list[asyncio.StreamWriter] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        if scope["path"] == "/wait":
            await self.go_on.wait()
        body = LARGE if scope["path"] == "/large" else b""
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if body else 204, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class ClockedAccepting(ClockedLoop, AcceptingLoop):
    """The service's event loop, with a clock that the test moves."""


Scenario = Callable[[Served, int], Coroutine[Any, Any, Any]]


def served(
    scenario: Scenario, most: int = 10_000, silent_s: float = PATIENCE_S, unread_s: float = PATIENCE_S
) -> Any:
    """The result of a scenario that runs with a server, and gets the app and the port."""
    crowd = Crowd(most)

    async def run() -> Any:
        app = Served()
        made: Any = bounded(crowd, silent_s, unread_s)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            server = uvicorn.Server(uvicorn.Config(app, http=made, log_config=None, lifespan="off"))
            running = asyncio.ensure_future(server.serve([listening]))
            try:
                return await asyncio.wait_for(scenario(app, port), PATIENCE_S)
            finally:
                app.go_on.set()
                for client in app.clients:
                    client.close()
                server.should_exit = server.force_exit = True
                await running
                assert crowd.count >= 0

    with asyncio.Runner(loop_factory=lambda: ClockedAccepting(crowd, silent_s)) as runner:
        return runner.run(run())


async def opened(
    app: Served, port: int, sent: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent these bytes, and is closed with the app."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    app.clients.append(writer)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def first_line(app: Served, port: int, sent: bytes) -> bytes:
    """The first line of the answer to a request on its own connection."""
    reader, writer = await opened(app, port, sent)
    line = await reader.readline()
    writer.close()
    return line


def test_silent_connections_beyond_the_limit_make_room() -> None:
    """Over the limit the oldest silent connections are closed; a new client is answered, and the newest
    stay."""

    async def scenario(app: Served, port: int) -> None:
        silent = [await opened(app, port) for _ in range(SPARE + 200)]
        assert (await first_line(app, port, GET % b"new")).startswith(b"HTTP/1.1 204")
        assert await silent[0][0].read() == b""
        silent[-1][1].write(GET % b"late")
        assert (await silent[-1][0].readline()).startswith(b"HTTP/1.1 204")

    served(scenario, most=20)


def test_the_one_that_has_been_idle_longest_makes_room() -> None:
    """The connection that is idle longest is closed, with a partial head or after an answer; a connection
    with a request in progress stays."""

    async def scenario(app: Served, port: int) -> None:
        busy = await opened(app, port, GET % b"wait")
        await until(lambda: app.asked == ["/wait"])
        halves = [await opened(app, port, b"GET / HTTP/1.1\r\nX") for _ in range(9)]
        while not halves[0][0].at_eof():
            assert (await first_line(app, port, GET % b"new")).startswith(b"HTTP/1.1 204")
            halves.append(await opened(app, port, b"GET / HTTP/1.1\r\nX"))
            await asyncio.sleep(0.01)
        app.go_on.set()
        assert (await busy[0].readline()).startswith(b"HTTP/1.1 204")

    served(scenario, most=10)


def test_where_all_are_busy_a_new_one_gets_a_503_and_a_probe_is_answered() -> None:
    """Where all connections are busy, a new one gets a 503 with Retry-After and what to change; a probe is
    answered."""

    async def scenario(app: Served, port: int) -> bytes:
        for _ in range(5):
            await opened(app, port, GET % b"wait")
        await until(lambda: len(app.asked) == 5)
        reader, _ = await opened(app, port, GET % b"new")
        said = await reader.read()
        assert (await first_line(app, port, PROBE)).startswith(b"HTTP/1.1 204")
        return said

    said = served(scenario, most=5)
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in said
    head, body = said.split(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert b"FLORENCE_MAX_CONNECTIONS" in body


def test_a_silent_connection_is_closed_in_time() -> None:
    """A connection without a byte is closed after the time limit."""

    async def scenario(app: Served, port: int) -> bytes:
        reader, _ = await opened(app, port)
        await first_line(app, port, GET % b"other")  # both connections are accepted
        skip(30.0)
        return await reader.read()

    assert served(scenario, silent_s=30.0) == b""


def test_a_probe_goes_before_connections_that_came_first() -> None:
    """A probe is answered before most of two hundred connections that sent their heads first."""

    async def scenario(app: Served, port: int) -> int:
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(201)]
        for index, client in enumerate(clients):  # without a pause: the server's loop is this one
            client.sendall(PROBE if index == 200 else GET % b"caption")
        await until(lambda: len(app.asked) == 201)
        for client in clients:
            client.close()
        return app.asked.index("/v2/health/live")

    assert served(scenario) < 30


def test_a_client_that_does_not_read_is_asked_no_further_work_for() -> None:
    """Ten large answers that a client asks for at once are made one at a time, each after the client has
    read the one before."""

    async def scenario(app: Served, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, GET % b"large" * 10)
            await until(lambda: len(app.asked) > 0)
            for _ in range(20):
                assert (await first_line(app, port, GET % b"another")).startswith(b"HTTP/1.1 204")
                skip(LOOK_S[1])  # the server checks what the client has read
            assert app.asked.count("/large") <= 2  # the next begins when the system has taken the first one
            taken = 0
            while app.asked.count("/large") < 10 or taken < 10 * len(LARGE):
                taken += len(await loop.sock_recv(client, 1 << 20))

    served(scenario)


def test_a_client_that_takes_nothing_is_given_up() -> None:
    """A client that reads nothing loses its connection after the time limit; one that reads slowly gets
    the whole answer."""

    async def scenario(app: Served, port: int) -> int:
        loop = asyncio.get_running_loop()
        with socket.socket() as stuck, socket.socket() as slow:
            for client in (stuck, slow):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # reading lets more be sent
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_sendall(client, GET % b"large")
            taken = 0
            for part in range(1, 21):
                while taken < part * len(LARGE) // 20:
                    taken += len(await loop.sock_recv(slow, 65_536))
                skip(2 * LOOK_S[1])  # the server checks what the clients have read
                for _ in range(2):
                    await asyncio.sleep(0)
            left = 0
            try:
                while got := len(await loop.sock_recv(stuck, 1 << 20)):
                    left += got
            except ConnectionResetError:
                pass
            return left

    assert served(scenario, unread_s=5.0) < len(LARGE)


@pytest.mark.parametrize("count", [2, 40])
def test_requests_sent_at_once_are_answered_in_their_order(count: int) -> None:
    """Requests sent at once are all answered, in their order."""

    async def scenario(app: Served, port: int) -> list[str]:
        reader, writer = await opened(app, port, b"".join(GET % b"%d" % index for index in range(count)))
        for _ in range(count):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.close()
        return app.asked

    assert served(scenario) == [f"/{index}" for index in range(count)]


def test_what_a_client_may_leave_unread_is_small() -> None:
    """The limit on unread bytes is below a TCP window, so it shows whether the client reads."""
    assert MOST_UNREAD < 65_536
