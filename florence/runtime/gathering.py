"""Gathers the parts of one request: the outcome is known when the last part is done, or the first one fails.

Knows generations and errors; knows nothing about tiles, threads or engines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from florence.engine.request import Generation
from florence.errors import FlorenceError

log = logging.getLogger(__name__)

OnTile = Callable[[int, int], None]
"""Called with the number of finished tiles and the number of all tiles; the first call, with 0, is when the
picture has been cut. It must be quick, since other answers wait for it."""

OnAll = Callable[[Sequence[Generation] | FlorenceError], None]
"""Called with the generations of all parts in order, or with the first error."""


class Gathering:
    """The outcomes of `count` parts. All methods must be called in one thread.

    If `on_part` raises, the error is logged and it is not called again; the answer is not affected.
    """

    def __init__(self, count: int, on_all: OnAll, on_part: OnTile | None = None) -> None:
        self._found: list[Generation | None] = [None] * count
        self._on_all: OnAll | None = on_all
        self._on_part = on_part

    def tell(self) -> None:
        """Call `on_part`, if there is one."""
        if self._on_part is None:
            return
        try:
            self._on_part(sum(part is not None for part in self._found), len(self._found))
        except Exception:
            log.exception("a callback for tiles failed; it is not called again")
            self._on_part = None

    def take(self, number: int, outcome: Generation | FlorenceError) -> None:
        """Take the outcome of part `number`; ignored once the request has its own."""
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
