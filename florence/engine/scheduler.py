"""Which requests are encoded when: the policy of the engine, in plain Python. Imports no torch.

Requests leave the queue in order of arrival, as many at once as there is room for, so none starves: one with
many beams is not overtaken by others with fewer. While requests are decoded, encoding gets a time budget
before each decode step, so that new pictures slow down the answers in progress by a bounded amount. An encode
batch holds as many pictures as fit into that budget, at least one: where one picture takes longer, batching
gains nothing, and the first picture would wait for the last. A batch that is not full waits a few steps for
more pictures.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from florence.errors import Overloaded, RequestError

RequestT = TypeVar("RequestT")

STEPS_BETWEEN_ENCODES = 4
"""Decode steps for which an encode batch that is not full waits, while requests are decoded."""

EMA_DECAY = 0.9  # of the mean time between answers, at each answer
ENCODE_EMA_DECAY = 0.5  # of the mean time of an encode, at each encode


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much is done at once, and for how long a request may wait.

    `max_batch_size`: requests that decode together. `max_encode_batch`: pictures that are encoded together,
    where that takes no longer than the budget. `max_queue`: requests that may wait, those whose pictures are
    still being read among them. `max_latency_s`: a request that would wait longer is refused, None for no
    such limit. `encode_budget_s`: for how long encoding may hold up those that are being decoded, before
    their next step; exceeded by at most one part of an encode.
    """

    max_batch_size: int = 16
    max_encode_batch: int = 4
    max_queue: int = 256
    max_latency_s: float | None = None
    encode_budget_s: float = 0.25

    def refusal(self, waiting: int, wait_s: float) -> Overloaded | None:
        """Why one more request, behind `waiting` others and for `wait_s` seconds, is one too many; None if it
        is not."""
        if waiting >= self.max_queue:
            reason, retry_after_s = f"{waiting} requests are waiting, as many as may", wait_s
        elif self.max_latency_s is not None and wait_s > self.max_latency_s:
            reason = f"this request would wait for {wait_s:.1f} s, {self.max_latency_s:g} s are allowed"
            retry_after_s = wait_s - self.max_latency_s
        else:
            return None
        retry_after_s = max(1.0, retry_after_s)
        return Overloaded(f"{reason}; come back in {retry_after_s:.0f} s", retry_after_s=retry_after_s)


def limits_for(device: str) -> BatchLimits:
    """The limits that suit a kind of device: a GPU computes for many in the time that it takes for a few."""
    return BatchLimits(max_batch_size=64, max_encode_batch=16) if device == "cuda" else BatchLimits()


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """How long a request may be, in tokens: its answer, and its prompt beside the picture. The engine keeps
    room for so many, for each beam and each request."""

    max_new_tokens: int = 1024
    max_prompt_tokens: int = 512

    def check(self, prompt: int, most: int) -> None:
        """Raises RequestError where so long a prompt, or an answer of `most` tokens, has no room."""
        if prompt > self.max_prompt_tokens:
            raise RequestError(
                f"the text has {prompt} tokens with the task's own words, at most "
                f"{self.max_prompt_tokens} fit beside the picture; shorten it"
            )
        if most > self.max_new_tokens:
            raise RequestError(f"max_new_tokens is {most}, this engine has room for {self.max_new_tokens}")


class Scheduler(Generic[RequestT]):
    """A bounded queue, and the decision what to take from it. Not safe for threads: its owner locks."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._waiting: deque[RequestT] = deque()
        self._steps = STEPS_BETWEEN_ENCODES  # decode steps since the last encode
        self.encode_s = 0.0  # of one request, a moving average; 0 while nothing is known

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: RequestT) -> None:
        """Put a request at the end of the queue."""
        self._waiting.append(request)

    def take(self, decoding: int, fits: Callable[[Iterable[RequestT]], int]) -> list[RequestT]:
        """Take the requests to encode now, while `decoding` others are decoded; none if it is too early.
        `fits` says how many of some requests, from the first on, there is room for."""
        room = self.limits.max_batch_size - decoding
        most = self._full_batch()
        count = min(room, most, len(self._waiting))
        if count < 1 or (count < most and decoding and self._steps < STEPS_BETWEEN_ENCODES):
            return []
        count = min(count, fits(self._waiting))
        if count:
            self._steps = 0
        return [self._waiting.popleft() for _ in range(count)]

    def _full_batch(self) -> int:
        """Requests of a full encode batch."""
        most, budget_s = self.limits.max_encode_batch, self.limits.encode_budget_s
        if self.encode_s * most <= budget_s:
            return most
        return max(1, int(budget_s / self.encode_s))

    def encoded(self, count: int, seconds: float) -> None:
        """Record that `count` requests were encoded together in so many seconds."""
        mean = seconds / count
        kept = ENCODE_EMA_DECAY if self.encode_s else 0.0
        self.encode_s = kept * self.encode_s + (1 - kept) * mean

    def budget_s(self, decoding: int) -> float:
        """Seconds for which encoding may go on before the next decode step."""
        return self.limits.encode_budget_s if decoding else float("inf")

    def stepped(self) -> None:
        """Record one decode step."""
        self._steps += 1

    def remove(self, unwanted: Collection[RequestT]) -> None:
        """Take these requests out of the queue, as far as they are in it."""
        self._waiting = deque(request for request in self._waiting if request not in unwanted)


class ThroughputEstimate:
    """How fast a busy engine answers: a moving average of the time between two answers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._seconds = 0.0

    def finished(self, count: int) -> None:
        """Record that `count` requests are finished now."""
        now = self._clock()
        if self._last is None:
            self._last = now
        if not count:
            return
        spent = (now - self._last) / count
        kept = EMA_DECAY**count if self._seconds else 0.0
        self._seconds = kept * self._seconds + (1 - kept) * spent
        self._last = now

    def rest(self) -> None:
        """Record that the engine is idle: the time until the next request does not count."""
        self._last = None

    def seconds_for(self, count: int) -> float:
        """Seconds that `count` requests will take; 0 while nothing is known."""
        return self._seconds * count
