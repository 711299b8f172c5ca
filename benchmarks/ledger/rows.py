"""The nine tasks in a closed loop, reckoned: the engine's own scheduler on a clock that only reckoned times
of encodes and steps advance.

So many requests are always under way, all of one task; a request that is answered is sent again at once. Host
and HTTP count only as far as the times that are given contain them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from florence.engine.config import EngineConfig
from florence.engine.scheduler import Scheduler

EncodeTime = Callable[[int], float]
"""Seconds of an encode of so many requests."""

StepTime = Callable[[int], float]
"""Seconds of a decode step whose longest sequence has so many positions."""

EXTRA_STEPS = 1
"""On a GPU an answer is known one step late."""

ROUNDS = 12
"""Answers that count, in multiples of the requests under way."""


@dataclass
class _Request:
    asked_s: float
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Answers a second, and latencies in seconds."""

    rate: float
    p50: float
    p99: float


def closed_loop(
    concurrency: int, tokens: int, encode_s: EncodeTime, step_s: StepTime, config: EngineConfig | None = None
) -> Row:
    """One task of so many tokens, `concurrency` requests at once."""
    scheduler: Scheduler[_Request] = Scheduler(config or EngineConfig.for_device("cuda"))
    now, decoding = 0.0, list[_Request]()
    answers: list[tuple[float, float]] = []  # when, and after how long
    for _ in range(concurrency):
        scheduler.add(_Request(now))
    while len(answers) < (ROUNDS + 1) * concurrency:
        started, parts = now, 0
        while scheduler.has_time(now - started, len(decoding), parts):
            taken = scheduler.take(len(decoding), lambda waiting: len(list(waiting)))
            if not taken:
                break
            seconds = encode_s(len(taken))
            now += seconds
            scheduler.part_ended(seconds)  # an encode is one part here
            scheduler.encoded(len(taken), seconds)
            parts = 1
            decoding += taken
        now += step_s(max(request.steps for request in decoding) + 2)
        scheduler.stepped()
        for request in decoding:
            request.steps += 1
        done = [request for request in decoding if request.steps == tokens + EXTRA_STEPS]
        decoding = [request for request in decoding if request.steps < tokens + EXTRA_STEPS]
        for request in done:
            answers.append((now, now - request.asked_s))
            scheduler.add(_Request(now))
    warm = answers[concurrency - 1 :]  # a first answer's latency is that of a cold start
    latencies = sorted(seconds for _, seconds in warm[1:])
    rate = (len(warm) - 1) / (warm[-1][0] - warm[0][0])
    return Row(rate, latencies[len(latencies) // 2], latencies[int(0.99 * (len(latencies) - 1))])
