"""Pictures a second and latency on a CPU: this engine against transformers' best static batch, in one run.

    python benchmarks/throughput.py [--size base] [--dtype bfloat16] [--concurrency 30] [--only caption ...]
    python benchmarks/throughput.py --size small --only latency

Weights are random, pictures differ from request to request, and outputs have the lengths of the tasks on
photographs. The engine keeps `--concurrency` requests in flight. transformers runs full static batches of
several sizes, of which the best counts: no request waits for a batch to fill, and a server's cost of batching
is left out. Each side has its own process, so that transformers runs unchanged; only one of them works at a
time.

caption, od: one task. mixed: nine tasks on different pictures; in a static batch all decode until the longest
is done. one-picture: nine tasks on one picture. latency: the 95th percentile of captions, with 4 captions and
12 detections in flight. Each client sends the next request after each answer; its first answer, which
includes the cold start, does not count on either side.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from closed_loop import TASKS, generate_static, options, requests, throughput
from command import parser_of
from random_models import SIZES, backend_of, convert, make_native, picture_tokens
from transformers import Florence2ForConditionalGeneration

from florence.engine.config import EngineConfig
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.request import Request
from florence.model.devices import bound_kernel_caches, keep_freed_memory
from florence.model.florence2 import Florence2Model
from florence.runtime.futures import generate

SLOTS = 16
"""Requests that decode together, the default on a CPU."""


@dataclass
class Bench:
    """The settings of a measurement."""

    size: str
    dtype: torch.dtype
    concurrency: int
    static_batches: tuple[int, ...]
    window_s: float
    captions: int


@dataclass(frozen=True)
class Part:
    """One comparison. `theirs` and `ours` measure; `rate`: True if more is better, False for a time."""

    theirs: Callable[[Bench, Florence2ForConditionalGeneration], float]
    ours: Callable[[Bench, Florence2Model], float]
    rate: bool


def start_engine(bench: Bench, model: Florence2Model, feature_bytes: int = 0) -> Engine:
    """An engine as the service configures it."""
    runner = Runner(model, SLOTS, feature_bytes=feature_bytes, backend=backend_of(model))
    config = EngineConfig(
        max_batch_size=SLOTS, max_queue=512, max_prompt_tokens=1024 - picture_tokens(bench.size)
    )
    return Engine(runner, config)


def run_static(bench: Bench, native: Florence2ForConditionalGeneration, asked: Sequence[Request]) -> float:
    """Seconds of one batch."""
    started = time.perf_counter()
    generate_static(native, asked, bench.dtype, torch.device("cpu"))
    return time.perf_counter() - started


def compare(asked_of: Callable[[Bench], list[Request]]) -> Part:
    """A comparison of pictures per second with many requests in flight and in the best static batch."""

    def theirs(bench: Bench, native: Florence2ForConditionalGeneration) -> float:
        asked = asked_of(bench)
        rates = {batch: batch / run_static(bench, native, asked[:batch]) for batch in bench.static_batches}
        print(f"  static batches: {', '.join(f'{n}: {rate:.3f}/s' for n, rate in rates.items())}")
        return max(rates.values())

    def ours(bench: Bench, model: Florence2Model) -> float:
        engine = start_engine(bench, model)
        rate = throughput(
            engine, asked_of(bench), bench.concurrency, first=SLOTS, count=24, window_s=bench.window_s
        )
        engine.close()
        return rate

    return Part(theirs, ours, rate=True)


def nine_lengths(bench: Bench) -> list[Request]:
    """Requests with different pictures, the tasks in turn."""
    lengths = [*TASKS.values()]
    return [
        replace(request, options=options(lengths[number % len(lengths)]))
        for number, request in enumerate(requests(bench.size, 1))
    ]


def nine_of_one(bench: Bench) -> list[Request]:
    """The nine tasks on one picture."""
    first = requests(bench.size, 1, 1)[0]
    return [replace(first, options=options(tokens)) for tokens in TASKS.values()]


def one_picture_theirs(bench: Bench, native: Florence2ForConditionalGeneration) -> float:
    """transformers' seconds for the nine tasks on one picture."""
    together = run_static(bench, native, nine_of_one(bench))
    apart = sum(run_static(bench, native, [request]) for request in nine_of_one(bench))
    print(f"  transformers: {together:.1f} s as one batch, {apart:.1f} s one by one")
    return min(together, apart)


def one_picture_ours(bench: Bench, model: Florence2Model) -> float:
    """The engine's seconds for the nine tasks on one picture."""
    engine = start_engine(bench, model, feature_bytes=2**27)
    started = time.perf_counter()
    for future in [generate(engine, request) for request in nine_of_one(bench)]:
        future.result()
    seconds = time.perf_counter() - started
    engine.close()
    return seconds


def latency_theirs(bench: Bench, native: Florence2ForConditionalGeneration) -> float:
    """Seconds of a batch of 4 captions and 12 detections: each client waits for the next batch, so a caption
    takes as long as a batch."""
    captions = requests(bench.size, TASKS["CAPTION"], 4)
    asked = [*captions, *requests(bench.size, TASKS["OD"], 12)]
    run_static(bench, native, asked)
    return run_static(bench, native, asked)


def latency_ours(bench: Bench, model: Florence2Model) -> float:
    """The 95th percentile of a caption's latency, with 4 captions and 12 detections in flight."""
    asked = {name: requests(bench.size, TASKS[name], 48) for name in ("CAPTION", "OD")}
    engine, over, lock = start_engine(bench, model), threading.Event(), threading.Lock()
    taken: dict[str, list[float]] = {name: [] for name in asked}
    cold = {(name, number) for name, count in (("CAPTION", 4), ("OD", 12)) for number in range(count)}

    def client(name: str, number: int) -> None:
        for request in cycle(asked[name][number:] + asked[name][:number]):
            started, is_warm = time.perf_counter(), not cold
            generate(engine, request).result()
            if over.is_set():
                return
            with lock:
                cold.discard((name, number))
                if is_warm:
                    taken[name].append(time.perf_counter() - started)
            if len(taken["CAPTION"]) >= bench.captions:
                over.set()

    threads = [threading.Thread(target=client, args=named) for named in sorted(cold)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    for name, found in taken.items():
        print(f"  {name}: {len(found)} answers, median {np.median(found) if found else 0:.2f} s", flush=True)
    return float(np.percentile(taken["CAPTION"], 95))


PARTS = {
    "caption": compare(lambda bench: requests(bench.size, TASKS["CAPTION"])),
    "od": compare(lambda bench: requests(bench.size, TASKS["OD"])),
    "mixed": compare(nine_lengths),
    "one-picture": Part(one_picture_theirs, one_picture_ours, rate=False),
    "latency": Part(latency_theirs, latency_ours, rate=False),
}


@cache
def native_of(size: str, dtype: torch.dtype) -> Florence2ForConditionalGeneration:
    """transformers' model, made once per process."""
    return make_native(size, dtype)


@cache
def model_of(size: str, dtype: torch.dtype) -> Florence2Model:
    """The same weights in this package's model."""
    keep_freed_memory()  # the library does this too when it loads
    bound_kernel_caches()
    return convert(make_native(size, dtype), torch.device("cpu"), dtype)


def measure_theirs(bench: Bench, name: str) -> float:
    """transformers' figure of a comparison."""
    return PARTS[name].theirs(bench, native_of(bench.size, bench.dtype))


def measure_ours(bench: Bench, name: str) -> float:
    """The engine's figure of a comparison."""
    return PARTS[name].ours(bench, model_of(bench.size, bench.dtype))


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--concurrency", type=int, default=30)
    parser.add_argument("--static-batches", type=int, nargs="+", default=(16,))
    parser.add_argument("--window-s", type=float, default=20.0, help="shortest time of one figure")
    parser.add_argument("--captions", type=int, default=40, help="captions whose latency counts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    bench = Bench(
        size=arguments.size,
        dtype=dtype,
        concurrency=arguments.concurrency,
        static_batches=tuple(arguments.static_batches),
        window_s=arguments.window_s,
        captions=arguments.captions,
    )
    print(f"{arguments.size}, {arguments.dtype}, {torch.get_num_threads()} threads", flush=True)
    context = multiprocessing.get_context("fork")  # torch is imported, and has computed nothing yet
    figures: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(1, context) as theirs, ProcessPoolExecutor(1, context) as ours:
        for name in arguments.only:
            their = theirs.submit(measure_theirs, bench, name).result()
            our = ours.submit(measure_ours, bench, name).result()
            ratio = our / their if PARTS[name].rate else their / our
            figures[name] = {"florence": our, "transformers": their, "ratio": ratio}
            unit = "pictures/s" if PARTS[name].rate else "s"
            print(
                f"{name:12} florence {our:8.3f} {unit}, transformers {their:8.3f} {unit}: {ratio:.2f}x",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
