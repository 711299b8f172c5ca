"""The parts of one request: a future gets its outcome when the last part is done, or the first one fails.

Knows generations and errors; nothing about tiles, threads or engines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from florence.engine.request import Generation
from florence.errors import FlorenceError

log = logging.getLogger(__name__)

OnTile = Callable[[int, int], None]
"""Gets how many tiles are done, and how many there are: first 0, when the picture was cut. It must be quick,
since other answers wait behind it."""

OnAll = Callable[[Sequence[Generation] | FlorenceError], None]
"""Gets the generations of all parts, in their order, or the first error."""


class Gathering:
    """The outcomes of `count` parts. All methods are called in one thread.

    An `on_part` that raises is called no more; the log says why, and the answer is not affected.
    """

    def __init__(self, count: int, on_all: OnAll, on_part: OnTile | None = None) -> None:
        self._found: list[Generation | None] = [None] * count
        self._on_all: OnAll | None = on_all
        self._on_part = on_part

    def tell(self) -> None:
        """Call `on_part`."""
        if self._on_part is None:
            return
        try:
            self._on_part(sum(part is not None for part in self._found), len(self._found))
        except Exception:
            log.exception("a callback for tiles failed; it is called no more")
            self._on_part = None

    def take(self, number: int, outcome: Generation | FlorenceError) -> None:
        """The outcome of a part; ignored when the whole has its own already."""
        if self._on_all is None:
            return
        on_all = self._on_all
        if isinstance(outcome, FlorenceError):
            self._on_all = None
            on_all(outcome)
            return
        self._found[number] = outcome
        self.tell()
        whole = [part for part in self._found if part is not None]
        if len(whole) == len(self._found):
            self._on_all = None
            on_all(whole)
