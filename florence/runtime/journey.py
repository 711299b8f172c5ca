"""Collects the facts about one request from its arrival to its end, and makes the report.

Knows outcomes and times; knows nothing about threads, devices or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from florence.engine.observer import FinishReason, RequestReport
from florence.engine.request import EngineTimings, Generation
from florence.errors import Closed, DeadlineExceeded, Overloaded, RequestError
from florence.runtime.answering import last_of
from florence.runtime.pipeline import CheckedTask

_ENDINGS: tuple[tuple[type[Exception], FinishReason], ...] = (
    (Overloaded, FinishReason.REFUSED),
    (Closed, FinishReason.CLOSED),
    (DeadlineExceeded, FinishReason.DEADLINE),
    (RequestError, FinishReason.INVALID),
)


@dataclass(slots=True)
class Journey:
    """What is known about a request so far. `clock`: in seconds; `started`: by this clock; `arrived`: seconds
    since the epoch; `context`: that of the call that submitted it. None: not known yet."""

    owner: str
    clock: Callable[[], float]
    started: float
    arrived: float = field(default_factory=time.time)
    context: Context = field(default_factory=copy_context)
    task: CheckedTask | None = None
    picture_size: tuple[int, int] | None = None
    read_s: float | None = None
    timings: EngineTimings | None = None
    tokens: int = 0

    def has_read(self, size: tuple[int, int]) -> None:
        """Record that its picture was read. `size`: width and height."""
        self.picture_size, self.read_s = size, self.clock() - self.started

    def generated(self, generations: Sequence[Generation]) -> None:
        """Record the generations of all tiles."""
        self.timings = last_of(generations).timings
        self.tokens = sum(len(generation.token_logprobs) for generation in generations)

    def report(self, future: Future[Any]) -> RequestReport:
        """The report of a request whose future is done."""
        timings = self.timings
        return RequestReport(
            task=self.task.task.name if self.task else "",
            outcome=outcome_of(future),
            owner=self.owner,
            beams=self.task.options.num_beams if self.task else 0,
            tokens=self.tokens,
            picture_size=self.picture_size,
            arrived=self.arrived,
            read_s=self.read_s,
            queue_s=timings.queue_s if timings else None,
            encode_s=timings.encode_s if timings else None,
            decode_s=timings.decode_s if timings else None,
            total_s=self.clock() - self.started,
            context=self.context,
        )


def outcome_of(future: Future[Any]) -> FinishReason:
    """How a request ended whose future is done."""
    if future.cancelled():
        return FinishReason.CANCELLED
    error = future.exception()
    if error is None:
        return FinishReason(future.result().finish_reason)
    return next((ending for kind, ending in _ENDINGS if isinstance(error, kind)), FinishReason.FAULT)
