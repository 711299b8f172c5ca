"""An event loop whose clock a test moves: time limits pass at once, and never because the machine is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock that `skip` moves on. `timers`: all timers that were set."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.skipped_s = 0.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        """The system's clock, moved on by what was skipped."""
        return super().time() + self.skipped_s

    def call_at(self, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        """Set a timer, as `asyncio` does, and keep it."""
        self.timers.append(timer := super().call_at(*arguments, **options))
        return timer


def skip(seconds: float) -> None:
    """Move the running loop's clock on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ClockedLoop)
    loop.skipped_s += seconds


def run_clocked(work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` on a `ClockedLoop`."""
    with asyncio.Runner(loop_factory=ClockedLoop) as runner:
        return runner.run(work)
