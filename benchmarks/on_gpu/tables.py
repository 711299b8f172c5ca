"""The nine tasks in the service's own engine, and in transformers' best static batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from closed_loop import TASKS, generate_static, measure, options, unseen
from closed_loop import requests as random_requests
from replaced import REPLACED

from florence.engine.request import Request
from on_gpu.bench import Bench, forget
from on_gpu.sections import Add

CONCURRENCIES = (30, 36, 64)
SETTINGS = ("different pictures", "one picture")
SHORTEST_S = 0.5
PATIENCE_S = 30.0
MEASURED = ("CAPTION", "CAPTION_TO_PHRASE_GROUNDING", "MORE_DETAILED_CAPTION", "OD")
"""Tasks that transformers runs; times of the others are interpolated, since a batch's time is linear in its
tokens."""


def tokens_of(bench: Bench) -> Mapping[str, int]:
    """The number of tokens of each task's answer."""
    if bench.size != "tiny":
        return TASKS
    return {task: max(2, tokens // 20) for task, tokens in TASKS.items()}


def source(asked: list[Request], setting: str) -> Iterator[Request]:
    """Requests without end; with different pictures each counts as new, whatever its pixels."""
    return itertools.cycle(asked[:1]) if setting == "one picture" else unseen(asked)


def nine_rows(bench: Bench, add: Add, until: float, window_s: float) -> None:
    """Answers per second, p50 and p99 of each task at each concurrency, in one engine as in the service.

    `until`: a value of `time.time()`; windows shrink as it approaches.
    """
    bench.drop_service()
    engine = bench.engine(bench.model)
    concurrencies = CONCURRENCIES if bench.size != "tiny" else (2,)
    settings = [(number, setting) for number in concurrencies for setting in SETTINGS]
    left = len(settings) * len(TASKS)
    drawn = random_requests(bench.size, 1, 32 if bench.on_gpu else 2)
    try:
        for concurrency, setting in settings:
            for task, tokens in tokens_of(bench).items():
                asked = [replace(request, options=options(tokens)) for request in drawn]
                share_s = (until - time.time()) / left
                left -= 1
                if share_s < SHORTEST_S / 2:
                    add(f"left out: {task}, {setting}, {concurrency} at once", "no time")
                    continue
                row = measure(
                    engine,
                    source(asked, setting),
                    concurrency,
                    first=concurrency,
                    count=concurrency,
                    window_s=min(window_s, max(SHORTEST_S, share_s - 1.0)) if bench.on_gpu else 0.0,
                    patience_s=PATIENCE_S,
                )
                old = REPLACED.get(concurrency, {}).get(task)
                times = {"times the replaced": row.rate / old} if old else {}
                add(f"{task}, {setting}, {concurrency} at once", asdict(row) | times)
    finally:
        engine.close(drain_s=5.0)
    if bench.on_gpu:
        add("most memory in use, GiB", torch.cuda.max_memory_allocated() / 2**30)


def through_transformers(bench: Bench, add: Add, until: float) -> None:
    """Seconds of full static batches of some sizes, and the best rate of each task."""
    native = bench.native()
    tokens = tokens_of(bench)
    best: dict[str, dict[str, Any]] = {}
    for batch in (16, 64) if bench.on_gpu else (2,):
        seconds: dict[int, float] = {}
        for task in MEASURED:
            if time.time() > until:
                add(f"left out: {task}, batch of {batch}", "no time")
                continue
            asked = random_requests(bench.size, tokens[task], batch)
            work = partial(generate_static, native, asked, bench.dtype, bench.device)
            try:
                if task == MEASURED[0]:
                    work()  # warm-up
                seconds[tokens[task]] = bench.host_ms(work, 1) / 1e3
            except torch.OutOfMemoryError as error:
                add(f"{task}, batch of {batch}", str(error))
                break
            add(f"{task}, batch of {batch}, s", seconds[tokens[task]])
        if len(seconds) < 2:
            continue
        slope, constant = np.polyfit(list(seconds), list(seconds.values()), 1)
        for task, length in tokens.items():
            spent = seconds.get(length, float(constant + slope * length))
            row = {"rate": batch / spent, "batch": batch, "by a line": length not in seconds}
            if row["rate"] > best.get(task, {"rate": 0.0})["rate"]:
                best[task] = row
    add("best rates", best)
    del native
    forget()


def table(figures: dict[str, Any]) -> str:
    """The nine tasks as a Markdown table, as far as they were measured."""
    rows, peer = figures.get("rows", {}), figures.get("transformers", {}).get("best rates", {})
    found = [name.split(", ", 1) for name in rows if name.endswith(" at once") and "left out" not in name]
    columns = list(dict.fromkeys(rest for _, rest in found))
    lines = [["task", *columns, "transformers", "replaced, 36 at once"]]
    lines.append(["---"] * len(lines[0]))
    for task in dict.fromkeys(task for task, _ in found):
        cells = [rows.get(f"{task}, {column}") for column in columns]
        rates = [f"{cell['rate']:.1f}" if cell else "" for cell in cells]
        their = f"{peer[task]['rate']:.1f}" if task in peer else ""
        lines.append([task, *rates, their, f"{REPLACED[36][task]}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
