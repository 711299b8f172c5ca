"""Whether the client of a connection takes its answers.

A client that asks and does not read fills the buffers of both systems, then this process's. It is asked no
further work for, and is given up after a while. Knows sockets; nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Final

MOST_UNREAD: Final = 16_384
"""Bytes of its answers that a client may not have taken yet when its next request is read."""
LOOK_S: Final = (0.02, 1.0)
"""Seconds between two looks at what a client has taken: at first, and at most."""


class Receiver:
    """The client of one connection, which is closed when it has taken nothing for `timeout_s` seconds of what
    it was sent. What its system has taken for it, some 64 KiB, counts as taken."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, timeout_s: float
    ) -> None:
        self._loop, self._transport, self._timeout_s = loop, transport, timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._then: Callable[[], None] | None = None
        self._paused = False
        self._left, self._looked, self._wait_s = 0, 0.0, LOOK_S[0]
        self._stuck_s = 0.0  # for so long nothing was taken

    def has_taken(self) -> bool:
        """Whether it has taken all but a little."""
        return self._unsent() <= MOST_UNREAD

    def watch(self, then: Callable[[], None] | None = None) -> None:
        """Look until it has taken all but a little, and call this then."""
        self._then = then or self._then
        if self._timer is None:
            self._left, self._stuck_s, self._wait_s = self._unsent(), 0.0, LOOK_S[0]
            self._look_later()

    def pauses(self) -> None:
        """The transport takes no more for it."""
        self._paused = True
        self.watch()

    def moves(self) -> None:
        """The transport takes more again."""
        self._paused = False
        self._stuck_s = 0.0

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._then = None

    def _look_later(self) -> None:
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(self._wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        left = self._unsent()
        if left <= MOST_UNREAD and not self._paused:
            then, self._then = self._then, None
            if then is not None:
                then()
            return
        waited = min(self._loop.time() - self._looked, 2 * self._wait_s)  # this process may have been held up
        self._stuck_s = self._stuck_s + waited if left >= self._left else 0.0
        self._left = left
        if self._stuck_s > self._timeout_s:
            self._transport.abort()
            return
        self._wait_s = min(2 * self._wait_s, LOOK_S[1])
        self._look_later()

    def _unsent(self) -> int:
        """Bytes that its system has not acknowledged, those in this process among them."""
        waiting = self._transport.get_write_buffer_size()
        try:
            told = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # the socket is closed, or the system can't tell
            return waiting
        return waiting + int(struct.unpack("i", told)[0])
