"""A simulated second stream: steps do not see what encodes write until the encodes end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import ref

import torch
from shared_pool import SharedPool
from torch import Tensor

from florence.engine.device.encode.stream import EncodeStream


@dataclass
class _View:
    """An encode's unfinished writes to a buffer: `values` where `written`."""

    buffer: ref[Tensor]
    written: Tensor
    values: Tensor


class TwoViews(EncodeStream):
    """A stream whose encodes work at once, but whose writes to held buffers are hidden until they are done.

    Steps find NaN in their place. `polls`: how often an encode is reported as unfinished. `asked`: the number
    of such reports. `waits`: how often the host waited.
    """

    beside = True

    def __init__(self, polls: int = 3) -> None:
        self.capturer = SharedPool()
        self.polls, self.asked, self.waits = polls, 0, 0
        self._left, self._views = 0, list[_View]()

    def hold(self, buffers: Iterable[Tensor]) -> None:
        """Hide the writes of encodes to these buffers."""
        for buffer in buffers:
            if all(view.buffer() is not buffer for view in self._views):
                nothing = torch.zeros_like(buffer, dtype=torch.bool)
                self._views.append(_View(ref(buffer), nothing, buffer.clone()))

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Show the encodes' values in this block, and hide its writes at the end."""
        before = [(view, buffer, buffer.clone()) for view, buffer in self._held()]
        for view, buffer, _ in before:
            buffer.copy_(torch.where(view.written, view.values, buffer))
        try:
            yield
        finally:
            for view, buffer, steps in before:
                differs = (buffer != steps) & ~(buffer.isnan() & steps.isnan())
                view.written, view.values = view.written | differs, buffer.clone()
                poison = torch.nan if buffer.is_floating_point() else 0
                buffer.copy_(torch.where(view.written, poison, steps).to(buffer.dtype))
            self._left = self.polls

    def done(self) -> bool:
        """Report an unfinished encode `polls` times, then show its writes."""
        if self._left:
            self._left -= 1
            self.asked += 1
            return False
        for view, buffer in self._held():
            buffer.copy_(torch.where(view.written, view.values, buffer))
            view.written.zero_()
        return True

    def wait(self) -> None:
        """Count the wait; the next `done` is True."""
        self.waits += 1
        self._left = 0

    def _held(self) -> list[tuple[_View, Tensor]]:
        """The buffers that still exist, with their hidden writes."""
        self._views = [view for view in self._views if view.buffer() is not None]
        found = [(view, view.buffer()) for view in self._views]
        return [(view, buffer) for view, buffer in found if buffer is not None]
