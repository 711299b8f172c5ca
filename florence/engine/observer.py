"""What the engine reports, for metrics: batches, times, outcomes. Plain Python: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """How a request ended."""

    STOP = "stop"  # the model ended its answer
    LENGTH = "length"  # the answer was cut at max_new_tokens
    CANCELLED = "cancelled"  # its answer was no longer wanted
    DEADLINE = "deadline"  # not finished in the time given
    FAULT = "fault"  # the request or the device failed
    REFUSED = "refused"  # the queue was full, or the wait too long
    CLOSED = "closed"  # the engine stopped first


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """How many requests wait, are being encoded, and are being decoded: together all that the engine has."""

    waiting: int
    encoding: int
    decoding: int


class Observer:
    """Gets every event; this one ignores them. Called on the engine's thread, but `reading` and `read` on
    any, and so is `ended` for a request that has not come to the engine; must be quick and must not raise."""

    def reading(self, change: int) -> None:
        """The number of requests whose pictures are unread or being read changed by 1 or -1."""

    def read(self, seconds: float) -> None:
        """A picture was read, or can't be, after so many seconds; its wait for a reader does not count."""

    def load(self, waiting: int, encoding: int, decoding: int) -> None:
        """The numbers of an `EngineSnapshot`, at each turn of the engine and each part of an encode."""

    def encoded(self, requests: int, pictures: int, seconds: float) -> None:
        """Requests were encoded together; `pictures` of theirs went through the tower, the others were in the
        feature cache."""

    def stepped(self, requests: int, rows: int, seconds: float) -> None:
        """One decode step of so many requests with so many beams in all."""

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        """A request ended, with so many generated tokens, after waiting for `queue_s`."""
