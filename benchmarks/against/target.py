"""The attacked service, and the sockets of the attacks."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Target:
    """The ports of the service and of the host of `image_url`. scale: a factor for numbers of clients and
    requests."""

    port: int
    grpc_port: int
    web_port: int
    scale: float = 1.0

    def times(self, count: int) -> int:
        """`count` times the scale, at least 1."""
        return max(1, round(count * self.scale))


Attack = Callable[[Target], object]
"""A function that attacks a service and returns a summary; it runs in a process of its own."""


def held(target: Target, count: int, sent: bytes, seconds: float, *, small: bool = False) -> str:
    """Hold `count` connections that send this and read nothing, for `seconds`. small: use a small receive
    buffer."""
    clients: list[socket.socket] = []
    refused = 0
    for _ in range(target.times(count)):
        client = socket.socket()
        if small:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE_S)
        try:
            client.connect(("127.0.0.1", target.port))
            client.settimeout(0.0)
            client.send(sent)
            clients.append(client)
        except OSError:
            refused += 1
    time.sleep(seconds * min(1.0, target.scale))
    closed = sum(_is_closed(client) for client in clients)
    for client in clients:
        client.close()
    return f"{len(clients)} connections, {refused} refused, {closed} closed by the service"


def _is_closed(client: socket.socket) -> bool:
    """True if the service has closed the connection."""
    try:
        while chunk := client.recv(1 << 20):
            del chunk
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def counted(outcomes: Iterable[object]) -> str:
    """The number of times each outcome occurred."""
    seen: dict[object, int] = {}
    for outcome in outcomes:
        seen[outcome] = seen.get(outcome, 0) + 1
    return ", ".join(f"{count} x {outcome}" for outcome, count in sorted(seen.items(), key=str))
