"""Pictures a second and latency on a CPU: this engine against transformers' best static batch, in one run.

    python benchmarks/throughput.py [--size base] [--dtype bfloat16] [--concurrency 30] [--only caption ...]

Weights are random, pictures differ from request to request, and outputs have the lengths that the tasks have
on photographs. The engine keeps `--concurrency` requests under way; transformers runs full static batches of
several sizes, of which the best counts: no request waits for a batch to fill, and what the batches of a
server would cost is left out.

caption, od: one task. mixed: nine tasks on different pictures; in a static batch all decode until the longest
is done. one-picture: nine tasks on one picture. latency: captions beside three times as many detections.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from closed_loop import PROMPT_TOKENS, TASKS, generate_static, options, requests, throughput
from random_models import SIZES, convert, make_native, picture_tokens
from transformers import Florence2ForConditionalGeneration

from florence.engine.loop import Engine, TokenLimits
from florence.engine.request import Generation, Request
from florence.engine.runner import Runner
from florence.engine.scheduler import BatchLimits
from florence.loading import cpu_kernel
from florence.model.florence2 import Florence2Model


@dataclass
class Bench:
    """The two to compare."""

    size: str
    dtype: torch.dtype
    model: Florence2Model
    native: Florence2ForConditionalGeneration
    concurrency: int
    static_batches: tuple[int, ...]
    window_s: float
    figures: dict[str, object] = field(default_factory=dict)

    def engine(self, slots: int = 16, feature_bytes: int = 0) -> Engine:
        runner = Runner(self.model, slots, feature_bytes=feature_bytes, kernel=cpu_kernel(self.model))
        limits = BatchLimits(slots, 4, max_queue=512)
        return Engine(runner, TokenLimits(1024, 1024 - picture_tokens(self.size)), limits)

    def static_rate(self, asked: Sequence[Request]) -> float:
        """Pictures/s of the best static batch."""
        rates = {}
        for batch in self.static_batches:
            started = time.perf_counter()
            generate_static(self.native, asked[:batch], self.dtype, torch.device("cpu"))
            rates[batch] = batch / (time.perf_counter() - started)
        print(f"  static batches: {', '.join(f'{n}: {rate:.3f}/s' for n, rate in rates.items())}")
        return max(rates.values())

    def compare(self, name: str, asked: list[Request]) -> None:
        """Pictures/s of both."""
        engine = self.engine()
        ours = throughput(engine, asked, self.concurrency, self.window_s)
        engine.close()
        self.say(name, ours, self.static_rate(asked), "pictures/s", ours_over_theirs=True)

    def say(self, name: str, ours: float, theirs: float, unit: str, *, ours_over_theirs: bool) -> None:
        ratio = ours / theirs if ours_over_theirs else theirs / ours
        self.figures[name] = {"florence": ours, "transformers": theirs, "unit": unit, "ratio": ratio}
        print(f"{name:12} florence {ours:8.3f} {unit}, transformers {theirs:8.3f} {unit}: {ratio:.2f}x")


def caption(bench: Bench) -> None:
    bench.compare("caption", requests(bench.size, TASKS["CAPTION"]))


def detection(bench: Bench) -> None:
    bench.compare("od", requests(bench.size, TASKS["OD"]))


def mixed(bench: Bench) -> None:
    lengths = [*TASKS.values()]
    asked = requests(bench.size, 1)
    bench.compare(
        "mixed",
        [replace(r, options=options(lengths[number % len(lengths)])) for number, r in enumerate(asked)],
    )


def one_picture(bench: Bench) -> None:
    """Seconds until all nine tasks of one picture are answered."""
    pixels = requests(bench.size, 1, 1)[0].pixels
    prompt = (0, *range(100, 98 + PROMPT_TOKENS), 2)
    asked = [Request(pixels, prompt, options(tokens)) for tokens in TASKS.values()]
    engine = bench.engine(feature_bytes=2**27)
    started = time.perf_counter()
    for future in [engine.submit(request) for request in asked]:
        future.result()
    ours = time.perf_counter() - started
    engine.close()
    started = time.perf_counter()
    generate_static(bench.native, asked, bench.dtype, torch.device("cpu"))
    together = time.perf_counter() - started
    started = time.perf_counter()
    for request in asked:
        generate_static(bench.native, [request], bench.dtype, torch.device("cpu"))
    apart = time.perf_counter() - started
    print(f"  transformers: {together:.1f} s as one batch, {apart:.1f} s one by one")
    bench.say("one-picture", ours, min(together, apart), "s", ours_over_theirs=False)


def latency(bench: Bench) -> None:
    """The 95th percentile of a caption's latency among detections, 16 requests under way.

    With static batches of 16, everybody who is answered asks again at once and waits for the next batch: each
    caption takes as long as a batch.
    """
    detections, captions = requests(bench.size, TASKS["OD"], 48), requests(bench.size, TASKS["CAPTION"], 48)
    engine, taken, over = bench.engine(), list[float](), threading.Event()
    under_way = threading.Semaphore(0)

    def client(asked: list[Request], note: Callable[[float], None]) -> None:
        for request in asked:
            if over.is_set():
                break
            started = time.perf_counter()
            future: Future[Generation] = engine.submit(request)
            future.result()
            note(time.perf_counter() - started)
        under_way.release()

    threads = [
        threading.Thread(target=client, args=(asked[number::count], note))
        for asked, count, note in ((detections, 12, lambda _: None), (captions, 4, taken.append))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    time.sleep(2 * bench.window_s)
    over.set()
    for thread in threads:
        thread.join()
    engine.close()
    ours = float(np.percentile(taken, 95))
    started = time.perf_counter()
    generate_static(bench.native, [*captions[:4], *detections[:12]], bench.dtype, torch.device("cpu"))
    theirs = time.perf_counter() - started
    print(f"  {len(taken)} captions")
    bench.say("latency", ours, theirs, "s", ours_over_theirs=False)


PARTS: dict[str, Callable[[Bench], None]] = {
    "caption": caption,
    "od": detection,
    "mixed": mixed,
    "one-picture": one_picture,
    "latency": latency,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--concurrency", type=int, default=30)
    parser.add_argument("--static-batches", type=int, nargs="+", default=(8, 16))
    parser.add_argument("--window-s", type=float, default=60.0, help="shortest time of one figure")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    native = make_native(arguments.size, dtype)
    bench = Bench(
        size=arguments.size,
        dtype=dtype,
        model=convert(native, torch.device("cpu"), dtype),
        native=native,
        concurrency=arguments.concurrency,
        static_batches=tuple(arguments.static_batches),
        window_s=arguments.window_s,
    )
    print(f"{arguments.size}, {arguments.dtype}, {torch.get_num_threads()} threads", flush=True)
    for name in arguments.only:
        PARTS[name](bench)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(bench.figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
