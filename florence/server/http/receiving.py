"""Watches whether the client of a connection reads its answers.

A client that sends requests and does not read fills the socket buffers of both hosts, then this process's. It
gets no further work done, and its connection is closed after a while. Knows sockets; nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Final

MAX_UNREAD: Final = 16_384
"""Bytes of its answers that a client may have left unread when its next request is read."""
LOOK_S: Final = (0.02, 1.0)
"""Seconds between two checks of what a client has read: at first, and at most."""


class Receiver:
    """Watches the client of one connection, and aborts the connection when the client has read nothing of
    what it was sent for `timeout_s` seconds. Bytes in the client's receive buffer, some 64 KiB, count as
    read."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, timeout_s: float
    ) -> None:
        self._loop, self._transport, self._timeout_s = loop, transport, timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._then: Callable[[], None] | None = None
        self._paused = False
        self._left, self._looked, self._wait_s = 0, 0.0, LOOK_S[0]
        self._stuck_s = 0.0  # for this long nothing was read

    def has_taken(self) -> bool:
        """Whether the client has read all but `MAX_UNREAD` bytes."""
        return self._unsent() <= MAX_UNREAD

    def watch(self, then: Callable[[], None] | None = None) -> None:
        """Check until `has_taken` is true, then call `then`."""
        self._then = then or self._then
        if self._timer is None:
            self._left, self._stuck_s, self._wait_s = self._unsent(), 0.0, LOOK_S[0]
            self._look_later()

    def pauses(self) -> None:
        """The transport's write buffer is full."""
        self._paused = True
        self.watch()

    def moves(self) -> None:
        """The transport's write buffer has room again."""
        self._paused = False
        self._stuck_s = 0.0

    def stop(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._then = None

    def _look_later(self) -> None:
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(self._wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        left = self._unsent()
        if left <= MAX_UNREAD and not self._paused:
            then, self._then = self._then, None
            if then is not None:
                then()
            return
        waited = min(self._loop.time() - self._looked, 2 * self._wait_s)  # this process may have been blocked
        self._stuck_s = self._stuck_s + waited if left >= self._left else 0.0
        self._left = left
        if self._stuck_s > self._timeout_s:
            self._transport.abort()
            return
        self._wait_s = min(2 * self._wait_s, LOOK_S[1])
        self._look_later()

    def _unsent(self) -> int:
        """Bytes that the client's host has not acknowledged, including those still in this process."""
        waiting = self._transport.get_write_buffer_size()
        try:
            told = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # the socket is closed, or the system can't tell
            return waiting
        return waiting + int(struct.unpack("i", told)[0])
