"""Estimates for the nine tasks in a closed loop: the engine's own scheduler on a clock that advances by
estimated times of encodes and steps.

A constant number of requests of one task is in flight; an answered request is sent again at once. Host and
HTTP count only as far as the given times contain them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from closed_loop import Rates

from florence.engine.config import EngineConfig
from florence.engine.device.capture.buckets import ENCODE_HALVES, doubling, round_down
from florence.engine.scheduler import Scheduler

EncodeTime = Callable[[int], tuple[float, float]]
"""Seconds of an encode of this number of requests: on the device, and on the host with its copies before it,
during which the device may do earlier work."""

StepTime = Callable[[int, float], float]
"""Seconds of a decode step of this number of requests, at this mean length."""

Slowdown = Callable[[int, float], float]
"""Slowdown of such a step and an encode that run concurrently."""

EXTRA_STEPS = 1
"""A GPU's answer arrives one step late."""

ROUNDS = 12
"""Answers that count, as a multiple of the requests in flight."""


class _Decoding:
    """Requests being decoded; those that join together end together. `positions`: of all their sequences,
    including the start token."""

    def __init__(self) -> None:
        self.positions = self._number = self._step = 0
        self._groups: deque[tuple[int, list[float]]] = deque()  # with the step of joining

    def __len__(self) -> int:
        return self._number

    def join(self, requests: list[float]) -> None:
        """Add requests from the next step on."""
        self._groups.append((self._step, requests))
        self._number += len(requests)
        self.positions += len(requests)

    def step(self, steps: int) -> list[float]:
        """Decode one more token for all; return the requests that have taken part in `steps` steps."""
        self._step += 1
        self.positions += self._number
        ended: list[float] = []
        while self._groups and self._step - self._groups[0][0] == steps:
            ended += self._groups.popleft()[1]
        self._number -= len(ended)
        self.positions -= (steps + 1) * len(ended)
        return ended


class _Loop:
    """The engine's loop on its own clock, for answers of `steps` steps.

    The scheduler's requests are the times at which they were sent. `done`: the time and the latency of each
    answer.
    """

    def __init__(
        self, config: EngineConfig, steps: int, encode_s: EncodeTime, step_s: StepTime, slowdown: Slowdown
    ) -> None:
        self.now, self.done = 0.0, list[tuple[float, float]]()
        self.scheduler: Scheduler[float] = Scheduler(config)
        self._steps, self._encode_s, self._step_s, self._slowdown = steps, encode_s, step_s, slowdown
        self._batches = doubling(1, config.max_encode_batch, halves=ENCODE_HALVES)
        self._under_way_s = 0.0  # of the previous piece of work
        self._decoding = _Decoding()
        self._encoding: list[float] = []  # those that run concurrently with steps
        self._began_s = self._left_s = 0.0  # start of the encode, and its remaining time without other work

    def encode(self) -> None:
        """Encode before a step, as long as the budget allows."""
        started, parts = self.now, 0
        while self.scheduler.has_time(self.now - started, len(self._decoding), parts):
            if not (taken := self._take()):
                break
            seconds, before = self._encode_s(len(taken))
            seconds += max(0.0, before - self._under_way_s)
            self.now, self._under_way_s = self.now + seconds, seconds
            self.scheduler.part_ended(seconds)  # an encode is one part here
            self.scheduler.encoded(len(taken), seconds)
            parts = 1
            self._decoding.join(taken)

    def encode_beside(self) -> None:
        """Encode on a second stream: requests join when their encode ends, and others are taken."""
        if not self._decoding:
            self.now, self._left_s = self.now + self._left_s, 0.0
        if self._left_s:
            return
        if self._encoding:
            self.scheduler.encoded(len(self._encoding), self.now - self._began_s)
        self._decoding.join(self._encoding)
        self._encoding, self._began_s = self._take(), self.now
        self._left_s = sum(self._encode_s(len(self._encoding))) if self._encoding else 0.0

    def step(self) -> None:
        """Decode one step for all requests; each that ends is sent again."""
        if not self._decoding:
            return
        load = len(self._decoding), self._decoding.positions / len(self._decoding)
        seconds = self._step_s(*load)
        both = min(self._left_s, seconds)
        self._left_s, self._under_way_s = self._left_s - both, seconds
        self.now += seconds + both * (self._slowdown(*load) - 1)
        self.scheduler.stepped()
        for asked_s in self._decoding.step(self._steps):
            self.done.append((self.now, self.now - asked_s))
            self.scheduler.add(self.now)

    def _take(self) -> list[float]:
        """The next requests to encode."""
        fits = lambda waiting: round_down(len(list(waiting)), self._batches)  # noqa: E731  (as the runner)
        return self.scheduler.take(len(self._decoding), fits)


def closed_loop(
    concurrency: int,
    tokens: int,
    encode_s: EncodeTime,
    step_s: StepTime,
    slowdown: Slowdown | None = None,
) -> Rates:
    """Estimate one task of `tokens` tokens with `concurrency` requests in flight. `slowdown`: of concurrent
    encodes; None: encodes run between steps."""
    steps = tokens + EXTRA_STEPS
    loop = _Loop(EngineConfig.for_device("cuda"), steps, encode_s, step_s, slowdown or (lambda *_: 1.0))
    encode = loop.encode_beside if slowdown else loop.encode
    for _ in range(concurrency):
        loop.scheduler.add(0.0)
    while len(loop.done) < (ROUNDS + 1) * concurrency:
        encode()
        loop.step()
    warm = loop.done[concurrency - 1 :]  # the latency of a first answer includes the cold start
    latencies = sorted(seconds for _, seconds in warm[1:])
    rate = (len(warm) - 1) / (warm[-1][0] - warm[0][0])
    return Rates(rate, latencies[len(latencies) // 2], latencies[int(0.99 * (len(latencies) - 1))])
