"""Memory for pixels that this process and its readers share: slots of one picture each.

The memory is a memfd, since a container's /dev/shm has 64 MB. A slot that was handed out is free again when
the last array over it is gone. Knows nothing about pictures and processes. Not covered: a reader that a
malicious picture controls can write into any slot.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

OnMemory = Callable[[memoryview], Callable[[], None] | None]
"""Called once with the whole mapping, before it is used, for example to pin it for a GPU. Returns what undoes
it, or None; that is called after `close`, once no slot is in use."""


class PixelMemory:
    """`slots` pictures of uint8 [height, width, 3]. Thread-safe without a lock, since garbage collection may
    release a slot in any thread: a deque's own operations are atomic."""

    def __init__(self, height: int, width: int, slots: int, on_memory: OnMemory | None = None) -> None:
        self.shape = (height, width, 3)
        self.picture_bytes = height * width * 3
        self.slot_bytes = -(-self.picture_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = os.memfd_create("florence-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.slot_bytes * slots)
        # Sealed, so that a reader can't shrink what this process has mapped, which would be a SIGBUS here.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._slots = slots
        self.buffer = memoryview(mmap.mmap(self.fd, self.slot_bytes * slots))
        self._free = deque(range(slots))
        self._closed = False
        undo = on_memory(self.buffer) if on_memory else None
        self._undo = deque([undo] if undo else [])

    @property
    def free(self) -> int:
        """Slots that are not in use."""
        return len(self._free)

    def acquire(self) -> int | None:
        """A free slot's number, which the caller then owns; None if there is none."""
        try:
            return self._free.pop()  # the last one released: its pages are resident
        except IndexError:
            return None

    def release(self, slot: int) -> None:
        """Free a slot that was acquired and not handed out."""
        self._free.append(slot)
        if self._closed and len(self._free) == self._slots:
            self._let_go()

    def copy(self, slot: int) -> NDArray[np.uint8]:
        """The slot's pixels in an ordinary array."""
        return self._array(slot).reshape(self.shape).copy()

    def hand_out(self, slot: int) -> NDArray[np.uint8]:
        """The slot's pixels; the slot is free again once this array and all views of it are gone."""
        array = self._array(slot)
        weakref.finalize(array, self.release, slot).atexit = False
        return array.reshape(self.shape)  # its base is `array`

    def close(self) -> None:
        """Close the descriptor, so that no other process can map the memory. Arrays that were handed out stay
        valid. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        os.close(self.fd)
        if len(self._free) == self._slots:
            self._let_go()
        self.buffer = memoryview(b"")  # unmapped with the last array

    def _array(self, slot: int) -> NDArray[np.uint8]:
        start = slot * self.slot_bytes
        return np.frombuffer(self.buffer[start : start + self.picture_bytes], np.uint8)

    def _let_go(self) -> None:
        try:
            undo = self._undo.popleft()
        except IndexError:  # there is none, or another thread was first
            return
        undo()
