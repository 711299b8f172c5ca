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
class Rates:
    """Answers a second, and latencies in seconds."""

    rate: float
    p50: float
    p99: float


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
) -> Rates:
    """Answers per second and latencies, with `concurrency` requests in flight.

    The `first` answers do not count; then at least `count` do, and all others that come within `window_s`.
    Raises `TimeoutError` after `patience_s`.
    """
    lock, over, done = threading.Lock(), threading.Event(), list[float]()
    failed: list[BaseException] = []
    latencies: list[float] = []
    idle, under_way = threading.Event(), 0
    gives_up = time.perf_counter() + patience_s

    def send() -> None:
        nonlocal under_way
        with lock:
            request, under_way = next(source), under_way + 1
        sent = time.perf_counter()
        generate(engine, request).add_done_callback(partial(finish, sent))

    def finish(sent: float, future: Future[Generation]) -> None:
        nonlocal under_way
        if (error := future.exception()) is not None:  # it is raised in the measuring thread
            failed.append(error)
            over.set()
        done.append(time.perf_counter())
        latencies.append(done[-1] - sent)
        with lock:
            under_way -= 1
        if not over.is_set():
            send()
        elif under_way == 0:
            idle.set()

    def wait(for_more: Callable[[], bool]) -> None:
        while for_more() and not failed:
            if time.perf_counter() > gives_up:
                over.set()
                raise TimeoutError(f"{len(done)} answers after {patience_s:.0f} s")
            time.sleep(0.01)

    for _ in range(concurrency):
        send()
    wait(lambda: len(done) < first)
    started = time.perf_counter()
    wait(lambda: time.perf_counter() - started < window_s or len(done) < first + count)
    if failed:
        raise failed[0]
    last = len(done)
    rate = (last - first) / (done[last - 1] - done[first - 1])
    counted = sorted(latencies[first:last])
    over.set()
    wait(lambda: not idle.is_set())
    return Rates(rate, *(counted[int(part * (len(counted) - 1))] for part in (0.5, 0.99)))


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
