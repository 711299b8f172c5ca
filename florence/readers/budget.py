"""A memory budget that readers share: decoding a picture waits until its share is free.

Knows numbers of bytes; knows nothing about pictures.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class DecodeBudget:
    """`total` bytes, granted in order of request, so that a large picture is not starved. Thread-safe."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._turn = threading.Condition()
        self.asking: deque[object] = deque()

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return self._used

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes are free; holds them while the context lasts. Raises ValueError above
        `total`."""
        if count > self.total:
            raise ValueError(f"{count} bytes are more than there ever are, {self.total}")
        ticket = object()
        with self._turn:
            self.asking.append(ticket)
            self._turn.wait_for(lambda: self.asking[0] is ticket and self._used + count <= self.total)
            self.asking.popleft()
            self._used += count
            self._turn.notify_all()
        try:
            yield
        finally:
            with self._turn:
                self._used -= count
                self._turn.notify_all()
