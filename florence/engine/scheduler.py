"""The engine's policy: which requests are accepted, and when they are encoded. Imports no torch.

Requests leave the queue in order of arrival, as many at once as there is room for, so none starves: a request
with many beams is not overtaken by one with fewer. While requests are decoded, encoding gets a time budget
before each decode step, so that new pictures slow down the answers in progress by a bounded amount. An encode
batch holds as many pictures as fit into that budget, at least one: where one picture takes longer than the
budget, a larger batch would gain nothing and delay its first picture. A batch that is not full waits a few
steps for more pictures.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Generic, TypeVar

from florence.engine.config import EngineConfig
from florence.errors import Overloaded, RequestError

RequestT = TypeVar("RequestT")

STEPS_BETWEEN_ENCODES = 4
"""Decode steps that must pass after an encode before a batch that is not full is encoded."""

EMA_DECAY = 0.9  # weight of the old mean time between answers, at each answer
PART_DECAY = 0.95  # decay of the longest part of an encode, at each part
ENCODE_EMA_DECAY = 0.5  # weight of the old mean time of an encode, at each encode


class Scheduler(Generic[RequestT]):
    """A bounded queue, and the policy of what to take from it. Not thread-safe: the owner locks."""

    def __init__(self, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.throughput = ThroughputEstimate(clock)
        self._waiting: deque[RequestT] = deque()
        self._steps = STEPS_BETWEEN_ENCODES  # decode steps since the last encode
        self.part_s = 0.0  # seconds of a long part of an encode
        self.encode_s = 0.0  # seconds of one request's encode, a moving average; 0 while unknown

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: RequestT) -> None:
        """Put a request at the end of the queue."""
        self._waiting.append(request)

    def take(self, decoding: int, fits: Callable[[Iterable[RequestT]], int]) -> list[RequestT]:
        """Take the requests to encode now, while `decoding` others are decoded; none if it is too early.
        `fits`: as `StepRunner.fits`."""
        room = self.config.max_batch_size - decoding
        full = self._full_batch()
        count = min(room, full, len(self._waiting))
        if count < 1 or (count < full and decoding and self._steps < STEPS_BETWEEN_ENCODES):
            return []
        count = min(count, fits(islice(self._waiting, count)))
        if count:
            self._steps = 0
        return [self._waiting.popleft() for _ in range(count)]

    def _full_batch(self) -> int:
        """Requests of a full encode batch."""
        full, budget_s = self.config.max_encode_batch, self.config.encode_budget_ms / 1000
        if self.encode_s * full <= budget_s:
            return full
        return max(1, int(budget_s / self.encode_s))

    def encoded(self, count: int, seconds: float) -> None:
        """Record that `count` requests were encoded together in `seconds`."""
        mean = seconds / count
        kept = ENCODE_EMA_DECAY if self.encode_s else 0.0
        self.encode_s = kept * self.encode_s + (1 - kept) * mean

    def part_ended(self, seconds: float) -> None:
        """Record that one part of an encode took `seconds`."""
        self.part_s = max(seconds, PART_DECAY * self.part_s)

    def has_time(self, spent_s: float, decoding: int, parts: int) -> bool:
        """Whether `parts` more parts of encodes may run before the next decode step, after `spent_s` seconds
        of others, while `decoding` requests wait for the step."""
        return not decoding or spent_s + parts * self.part_s < self.config.encode_budget_ms / 1000

    def stepped(self) -> None:
        """Record one decode step."""
        self._steps += 1

    def remove(self, unwanted: Collection[RequestT]) -> None:
        """Remove those of these requests that are in the queue."""
        self._waiting = deque(request for request in self._waiting if request not in unwanted)

    def wait_s(self, waiting: int) -> float:
        """Estimated seconds until `waiting` requests are done; 0 while nothing is known."""
        # The larger estimate counts: the throughput of a busy engine, or the encodes alone.
        return max(self.throughput.seconds_for(waiting), waiting * self.encode_s)

    def refusal(self, waiting: int) -> Overloaded | None:
        """The error that refuses one more request behind `waiting` others; None if it is accepted."""
        wait_s = self.wait_s(waiting)
        max_ms = self.config.max_latency_ms
        if waiting >= self.config.max_queue:
            reason, retry_after_s = f"{waiting} requests are waiting, which is the limit", wait_s
        elif max_ms is not None and wait_s > max_ms / 1000:
            reason = f"this request would wait for {wait_s:.1f} s, {max_ms / 1000:g} s are allowed"
            retry_after_s = wait_s - max_ms / 1000
        else:
            return None
        retry_after_s = max(1.0, retry_after_s)
        return Overloaded(f"{reason}; come back in {retry_after_s:.0f} s", retry_after_s=retry_after_s)


class ThroughputEstimate:
    """A busy engine's throughput: a moving average of the time between two answers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._seconds = 0.0

    def finished(self, count: int) -> None:
        """Record that `count` requests have just finished."""
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
        """Record that the engine is idle: the time until the next request is not counted."""
        self._last = None

    def seconds_for(self, count: int) -> float:
        """Estimated seconds until `count` requests are done; 0 while nothing is known."""
        return self._seconds * count


def check_tokens(config: EngineConfig, prompt: int, new: int) -> None:
    """Raise `RequestError` where there is no room for a prompt of `prompt` tokens or an answer of `new`
    tokens."""
    if prompt > config.max_prompt_tokens:
        raise RequestError(
            f"the prompt has {prompt} tokens with the task's own words; at most "
            f"{config.max_prompt_tokens} fit beside the picture: shorten the text"
        )
    if new > config.max_new_tokens:
        raise RequestError(f"max_new_tokens is {new}; this engine allows at most {config.max_new_tokens}")
