"""What the engine reports, for metrics: batches, times, outcomes. Plain Python: imports no torch."""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """How a request ended."""

    STOP = "stop"  # the model ended its answer
    LENGTH = "length"  # the answer was cut at max_new_tokens
    CANCELLED = "cancelled"  # the caller cancelled it
    DEADLINE = "deadline"  # not finished in the time given
    FAULT = "fault"  # the request or the device failed
    REFUSED = "refused"  # the queue was full, or the wait too long
    CLOSED = "closed"  # the engine stopped first
    INVALID = "invalid"  # its picture, task, text or options can't be answered


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """How many requests wait, are being encoded, and are being decoded; each request of the engine is in one
    of them."""

    waiting: int
    encoding: int
    decoding: int


@dataclass(frozen=True, slots=True)
class RequestReport:
    """One request from its arrival to its end.

    `task`: its name, "" for an unknown one; `owner`: as `Florence2.load` has it, "" for none; `arrived`:
    seconds since the epoch; `read_s`: seconds until its picture was read; `queue_s`, `encode_s`, `decode_s`:
    seconds in each phase of the engine, None for a phase that the request did not complete; `total_s`:
    seconds in all. `picture_size`: width and height, None if unknown. `context`: that of the call that
    submitted it.
    """

    task: str
    outcome: FinishReason
    owner: str
    beams: int
    tokens: int
    picture_size: tuple[int, int] | None
    arrived: float
    read_s: float | None
    queue_s: float | None
    encode_s: float | None
    decode_s: float | None
    total_s: float
    context: Context


class Observer:
    """Gets every event; this class ignores them. Methods are called on the engine's thread, except `reading`,
    `read`, and `ended` for a request that never reached the engine: these are called on any thread. They must
    be quick and must not raise."""

    def reading(self, change: int) -> None:
        """The number of requests whose pictures are unread or being read changed by 1 or -1."""

    def read(self, seconds: float) -> None:
        """A picture was read, or failed to be read, in `seconds`, not counting its wait for a reader."""

    def load(self, waiting: int, encoding: int, decoding: int) -> None:
        """The numbers of an `EngineSnapshot`, at each turn of the engine and each part of an encode."""

    def encoded(self, requests: int, pictures: int, seconds: float) -> None:
        """`requests` requests were encoded together; `pictures` pictures went through the tower, the others
        were in the feature cache."""

    def stepped(self, requests: int, rows: int, seconds: float) -> None:
        """One decode step of `requests` requests with `rows` beams in all."""

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        """A request ended with `tokens` generated tokens, after `queue_s` seconds in the queue."""

    def finished(self, report: RequestReport) -> None:
        """A request has its outcome, from any part of the runtime. Called on any thread."""
