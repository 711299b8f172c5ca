"""A graph capturer without a GPU whose replays overwrite each other's results, as graphs of one memory pool
do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from florence.engine.device.capture.graphs import Replay, Work


class SharedPool:
    """A capturer whose replays overwrite the results of all other captured work, as graphs that share a
    memory pool may."""

    def __init__(self) -> None:
        self.resets = -1
        self.reset()

    def reset(self) -> None:
        """Forget all captured work and count the reset."""
        self.resets += 1
        self.all: list[list[Tensor]] = []

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """Capture work whose replay overwrites all other results."""
        results: list[Tensor] = []
        self.all.append(results)

        def replay() -> None:
            made = [result.clone() for result in work()]
            for other in self.all:
                for result in other:
                    result.fill_(-1 if result.dtype == torch.int64 else torch.nan)
            if not results:
                results.extend(made)
            for result, new in zip(results, made, strict=True):
                result.copy_(new)

        return replay, results
