"""Free ports for services of benchmarks and tests."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """A port at which no program listens now, below the range of outgoing connections, which could take it
    before a server does."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
