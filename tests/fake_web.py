"""Simulated hosts: names, addresses and HTTP answers for `PictureFetcher`, without a network."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from httpcore import AsyncNetworkBackend, AsyncNetworkStream, ConnectError, ReadError
from pictures import drawn, saved

from florence.server.fetching.allowed import read_allow_list
from florence.server.fetching.fetcher import PictureFetcher

HOST = "pictures.test"
PUBLIC = "93.184.216.34"  # a public address, to which no test connects
PICTURE = saved(drawn(64, 48))

Piece = bytes | Exception | asyncio.Event | Callable[[], Awaitable[bytes]]
"""Bytes of an answer, an error in their place, an event to wait for, or a function that makes bytes."""


def answer(
    body: bytes = PICTURE, status: int = 200, headers: Mapping[str, str] | None = None, **more: str
) -> bytes:
    """An HTTP answer; `more`: headers, with _ in place of -."""
    named = {name.replace("_", "-"): value for name, value in more.items()} | dict(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Fine\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode("latin-1") + body


def redirect(location: str, status: int = 302) -> bytes:
    """An HTTP answer that redirects to this location."""
    return answer(b"", status, location=location)


LIMITS: dict[str, Any] = {"max_bytes": 20 * 2**20, "arrive_s": 60.0, "most": 256, "most_of_key": 128}


@dataclass
class FakeWeb(AsyncNetworkBackend):
    """A simulated network.

    names: the addresses of each host; pages: the pieces of an answer by its URL (scheme, Host header and
    target); dead: addresses that accept no connection. `lookups`, `connections` (address, port), `greeted`
    (server names in TLS) and `requests` (bytes) record what happened.
    """

    names: dict[str, Sequence[str]] = field(default_factory=lambda: {HOST: [PUBLIC]})
    pages: dict[str, Sequence[Piece]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    lookups: list[str] = field(default_factory=list)
    connections: list[tuple[str, int]] = field(default_factory=list)
    greeted: list[str | None] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    closed: int = 0

    def fetcher(self, hosts: str = HOST, networks: str | None = None, **limits: Any) -> PictureFetcher:
        """A fetcher that may reach these hosts, with these limits."""
        allowed = read_allow_list(hosts, networks)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        told = LIMITS | limits
        return PictureFetcher(allowed=allowed, resolve=self.resolve, connector=self, tls=tls, **told)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The host's addresses, recorded in `lookups`."""
        self.lookups.append(host)
        if host not in self.names:
            raise OSError(f"no such name: {host}")
        return self.names[host]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """A connection, recorded in `connections`."""
        self.connections.append((host, port))
        if host in self.dead:
            raise ConnectError("secret reason")
        return FakeStream(self)


@dataclass
class FakeStream(AsyncNetworkStream):
    """One connection, which gives the answer for the request that was written to it."""

    web: FakeWeb
    scheme: str = "http"
    written: bytes = b""
    pieces: list[Piece] | None = None
    closed: bool = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep the bytes of the request."""
        self.written += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes of the answer."""
        if self.pieces is None:
            self.web.requests.append(self.written)
            self.pieces = list(self.web.pages.get(self._url(), [answer(b"", 404)]))
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, Exception):
                raise piece
            elif isinstance(piece, bytes):
                self.pieces[:0] = [piece[max_bytes:]] if len(piece) > max_bytes else []
                return piece[:max_bytes]
            else:
                return await piece()
        return b""

    def _url(self) -> str:
        """The URL of the request."""
        lines = self.written.decode("ascii").split("\r\n")
        host = next(line.split(": ")[1] for line in lines if line.lower().startswith("host: "))
        return f"{self.scheme}://{host}{lines[0].split(' ')[1]}"

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        """A connection that counts as encrypted."""
        self.web.greeted.append(server_hostname)
        return FakeStream(self.web, "https")

    async def aclose(self) -> None:
        """Count the closed connections."""
        self.web.closed += not self.closed
        self.closed = True


BROKEN = ReadError("secret reason")
