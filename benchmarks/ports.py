"""A port for a service that a benchmark or a test starts."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """A port that nothing listens on now, below those of outgoing connections: one of these could be taken
    before a server has it."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
