"""Resolves names to addresses, and connects to addresses that were checked.

Knows httpcore's network back end and the system's resolver; nothing about HTTP and about which addresses are
allowed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from httpcore import (
    SOCKET_OPTION,
    AsyncNetworkBackend,
    AsyncNetworkStream,
    ConnectError,
    NetworkError,
    TimeoutException,
)

from florence.server.fetching.allowed import Address

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host's name, with a port, to addresses as text. Raises OSError where there are none."""

MAX_ADDRESSES: Final = 4
"""Addresses of one host that are tried."""
_RESOLVERS: Final = 8


def system_resolver() -> Resolve:
    """The system's resolver, in a few threads of its own: a call may take long, and can't be cancelled."""
    threads = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="florence-resolve")

    async def resolve(host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(threads, _addresses, host, port)
        return list(dict.fromkeys(str(where[0]) for *_, where in found))

    return resolve


def _addresses(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class CheckedAddresses(AsyncNetworkBackend):
    """Connects to one of these addresses, whatever the host is called; TLS still checks the host's name.

    `connector`: opens the connections.
    """

    def __init__(self, connector: AsyncNetworkBackend, addresses: Sequence[Address]) -> None:
        self._connector = connector
        self._addresses = addresses[:MAX_ADDRESSES]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        """A connection to the first address that accepts one. `timeout`: seconds for each address. Raises the
        last address's error."""
        failure: Exception = ConnectError("no address")
        for address in self._addresses:
            try:
                return await self._connector.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (NetworkError, TimeoutException) as error:
                failure = error
        raise failure
