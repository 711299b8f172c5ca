"""Requests of given lengths, with a constant number of them in flight, for the throughput benchmarks."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from random_models import SIDE, native_inputs
from transformers import Florence2ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florence.engine.loop import Engine
from florence.engine.request import Generation, GenerationOptions, Request
from florence.runtime.futures import generate

TASKS = {  # tokens generated
    "CAPTION": 12,
    "DETAILED_CAPTION": 45,
    "MORE_DETAILED_CAPTION": 90,
    "CAPTION_TO_PHRASE_GROUNDING": 40,
    "OD": 130,
    "DENSE_REGION_CAPTION": 160,
    "REGION_PROPOSAL": 110,
    "OCR": 20,
    "OCR_WITH_REGION": 60,
}
"""Tokens that the nine tasks of the replaced deployment generate for photographs."""

BEAMS, PROMPT_TOKENS = 3, 12


def options(tokens: int, beams: int = BEAMS) -> GenerationOptions:
    """Options of a search that generates exactly this number of tokens."""
    return GenerationOptions(beams, tokens, tokens, 3, True, 1.0)


def requests(size: str, tokens: int, count: int = 64) -> list[Request]:
    """Requests with different pictures."""
    dice = np.random.default_rng(0)
    shape = (SIDE[size], SIDE[size], 3)
    prompt = (0, *range(100, 98 + PROMPT_TOKENS), 2)
    return [
        Request(dice.integers(0, 256, shape, dtype=np.uint8), prompt, options(tokens)) for _ in range(count)
    ]


def unseen(asked: Sequence[Request]) -> Iterator[Request]:
    """Repeat these requests without end, each with a digest of its own, so that its picture counts as new."""
    numbered = enumerate(cycle(asked))
    return (replace(request, digest=number.to_bytes(8, "big")) for number, request in numbered)


@dataclass(frozen=True, slots=True)
class ClosedLoopRates:
    """Answers a second, and latencies in seconds."""

    rate: float
    p50: float
    p99: float


class _ClosedLoop:
    """Keeps requests in flight: the end of each sends the next. `done`: when each answer came, by
    `time.perf_counter`; `latencies`: theirs, in seconds."""

    def __init__(self, engine: Engine, source: Iterator[Request], patience_s: float) -> None:
        self.done, self.latencies = list[float](), list[float]()
        self._engine, self._source, self._patience_s = engine, source, patience_s
        self._gives_up = time.perf_counter() + patience_s
        self._lock, self._in_flight = threading.Lock(), 0
        self._over, self._idle = threading.Event(), threading.Event()
        self._failed: list[BaseException] = []

    def send(self) -> None:
        """Send a request, and after its end the next one, until `end` or a failure."""
        with self._lock:
            request = next(self._source)
            self._in_flight += 1
        sent = time.perf_counter()
        generate(self._engine, request).add_done_callback(partial(self._finish, sent))

    def wait(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached` is true. Raises the error of a request that failed, and `TimeoutError` when
        `patience_s` is over."""
        while not reached():
            if self._failed:
                raise self._failed[0]
            if time.perf_counter() > self._gives_up:
                self._over.set()
                raise TimeoutError(f"{len(self.done)} answers after {self._patience_s:.0f} s")
            time.sleep(0.01)

    def end(self) -> None:
        """Send no more requests, and wait for the last answers."""
        self._over.set()
        self.wait(self._idle.is_set)

    def _finish(self, sent: float, future: Future[Generation]) -> None:
        """Record an answer, in the engine's thread."""
        if (error := future.exception()) is not None:  # it is raised in the measuring thread
            self._failed.append(error)
            self._over.set()
        now = time.perf_counter()
        self.latencies.append(now - sent)
        self.done.append(now)
        with self._lock:
            self._in_flight -= 1
            last = self._in_flight == 0
        if not self._over.is_set():
            self.send()
        elif last:
            self._idle.set()


def throughput(
    engine: Engine, asked: list[Request], concurrency: int, *, first: int, count: int, window_s: float
) -> float:
    """The rate of `measure`."""
    return measure(engine, cycle(asked), concurrency, first=first, count=count, window_s=window_s).rate


def measure(
    engine: Engine,
    source: Iterator[Request],
    concurrency: int,
    *,
    first: int,
    count: int,
    window_s: float,
    patience_s: float = math.inf,
) -> ClosedLoopRates:
    """Answers per second and latencies, with `concurrency` requests in flight.

    The `first` answers do not count; then at least `count` do, and all others that come within `window_s`.
    Raises `TimeoutError` after `patience_s`.
    """
    loop = _ClosedLoop(engine, source, patience_s)
    for _ in range(concurrency):
        loop.send()
    loop.wait(lambda: len(loop.done) >= first)
    started = time.perf_counter()
    loop.wait(lambda: time.perf_counter() - started >= window_s and len(loop.done) >= first + count)
    last = len(loop.done)
    rate = (last - first) / (loop.done[last - 1] - loop.done[first - 1])
    counted = sorted(loop.latencies[first:last])
    loop.end()
    return ClosedLoopRates(rate, *(counted[int(part * (len(counted) - 1))] for part in (0.5, 0.99)))


@torch.inference_mode()
def generate_static(
    native: Florence2ForConditionalGeneration,
    asked: Sequence[Request],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Run one static batch through transformers; pixels are uploaded as bytes and normalised there, and all
    requests decode until the longest is done."""
    tokens = max(request.options.max_new_tokens for request in asked)
    native.generate(
        **native_inputs(asked, device, dtype),
        do_sample=False,
        num_beams=asked[0].options.num_beams,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        no_repeat_ngram_size=3,
        early_stopping=True,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
    )
