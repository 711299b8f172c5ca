"""Times of graphs: steps on a grid of slots and lengths, encodes, the host's part, a profile by kernel, the
start and its memory, and the costs of a copy, a product and a small kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from closed_loop import Rates, measure, unseen
from closed_loop import requests as random_requests
from random_models import SIZES, picture_tokens
from torch.profiler import ProfilerActivity, profile

from florence.engine.config import EncodeStreamChoice
from florence.engine.device.capture.graphs import CudaGraphCapturer, Replay
from florence.engine.device.runner import Runner
from florence.engine.encode_policy import setting_of
from florence.engine.request import Request
from florence.engine.sequence import SequenceState
from on_gpu.bench import Bench, Watched, forget
from on_gpu.sections import Add

GRID = {"slots": (1, 8, 32, 48, 64), "lengths": (64, 128, 256)}
PROFILED = {"slots": (32, 64), "lengths": (64, 128, 256)}
REPLAYS = 16
ROWS = 40
"""The number of kernels shown of a profile."""

ROOM = 12
"""Steps that fit into a bucket of lengths in addition to the replays."""

BESIDE = {"CAPTION": 12, "OD": 130}
"""Tokens of the tasks measured with concurrent encodes: one that consists nearly of the encode, and one that
does not."""

ENCODE_STREAMS: tuple[EncodeStreamChoice, ...] = ("off", "on")

LONG = 1000
"""Tokens of requests that outlast a measurement."""


@torch.inference_mode()
def start(bench: Bench, add: Add) -> None:
    """Measure the seconds from saved weights until the engine accepts requests, and the memory that it then
    uses."""
    started = time.perf_counter()
    bench.folder  # noqa: B018  (made here, so that only loading is timed)
    add("random weights made and saved, s", time.perf_counter() - started)
    started = time.perf_counter()
    bench.model  # noqa: B018
    bench.synchronize()
    add("load, s", time.perf_counter() - started)
    memory(bench, add, "after load")
    started = time.perf_counter()
    bench.backend(bench.model)
    add("kernels compiled and checked, s", time.perf_counter() - started)
    started = time.perf_counter()
    runner, watched = bench.service
    bench.synchronize()
    add("prepare, s", time.perf_counter() - started)
    add("graphs captured before ready", watched.captured)
    add("encode stream", chosen(runner))
    add("caches, GiB", runner.caches.nbytes / 2**30)
    memory(bench, add, "after prepare")
    started = time.perf_counter()
    sequences = runner.encode(endless(bench, 1))
    run(runner, sequences, 3)
    add("first request, 3 steps, ms", (time.perf_counter() - started) * 1e3)
    add("graphs captured then", watched.captured)
    drop(runner, sequences)


def chosen(runner: Runner) -> dict[str, Any]:
    """The decision at the start about encodes, with both measured times."""
    decision = runner.decision
    return {"setting": setting_of(decision)} | ({} if decision is None else asdict(decision))


def memory(bench: Bench, add: Add, when: str) -> None:
    """Record the card's memory."""
    if not bench.on_gpu:
        return
    free, total = torch.cuda.mem_get_info()
    add(
        f"GiB {when}",
        {
            "allocated": torch.cuda.memory_allocated() / 2**30,
            "reserved": torch.cuda.memory_reserved() / 2**30,
            "most allocated": torch.cuda.max_memory_allocated() / 2**30,
            "free": free / 2**30,
            "total": total / 2**30,
        },
    )


def endless(bench: Bench, count: int) -> list[Request]:
    """Requests that outlast a measurement."""
    return random_requests(bench.size, LONG, count)


def run(runner: Runner, sequences: Sequence[SequenceState], steps: int) -> None:
    """Run these steps."""
    for _ in range(steps):
        runner.step(list(sequences))


def drop(runner: Runner, sequences: Sequence[SequenceState]) -> None:
    """Drop these sequences."""
    for sequence in sequences:
        runner.drop(sequence)


def graph_of_step(watched: Watched, runner: Runner, sequences: Sequence[SequenceState]) -> Replay | None:
    """The graph of a step of these sequences, or None if none is captured. Runs two steps."""
    run(runner, sequences, 1)  # a graph is captured in the next step at the latest
    watched.recent.clear()
    run(runner, sequences, 1)
    return watched.recent[-1] if watched.recent else None


def replay(work: Replay, sequences: Sequence[SequenceState]) -> Replay:
    """`work`, which runs a step on the device, with the host's counters."""

    def counted() -> None:
        work()
        for sequence in sequences:
            sequence.steps += 1

    return counted


@torch.inference_mode()
def grid(bench: Bench, add: Add) -> None:
    """Measure steps, by replays in a row and with the host's work, and then encodes."""
    runner, watched = bench.service
    for slots, length, sequences in crowds(bench, runner, GRID):
        graph = graph_of_step(watched, runner, sequences)
        figures = {"step and host, ms": bench.host_ms(partial(run, runner, sequences, 1))}
        if graph is not None:
            figures["replay, ms"] = bench.device_ms(replay(graph, sequences), REPLAYS)
        add(f"step, {slots} slots, length {length}", figures)
    encodes(bench, runner, watched, add)
    add("graphs captured in all", watched.captured)


def crowds(
    bench: Bench, runner: Runner, sizes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[int, int, list[SequenceState]]]:
    """Sequences decoded up to each length, for each number of slots; at tiny sizes only one case."""
    if bench.size == "tiny":
        sizes = {"slots": (2,), "lengths": (REPLAYS + ROOM + 1,)}
    for slots in sizes["slots"]:
        sequences: list[SequenceState] = []
        while len(sequences) < slots:
            count = min(bench.encode_batch, slots - len(sequences))
            sequences += runner.encode(endless(bench, count))
        for length in sizes["lengths"]:
            run(runner, sequences, length - REPLAYS - ROOM - sequences[0].steps)
            yield slots, length, sequences
        drop(runner, sequences)


def encodes(bench: Bench, runner: Runner, watched: Watched, add: Add) -> None:
    """Measure the two graphs of an encode separately, and a whole encode with the host's work."""
    for count in (1, 4, 8, bench.encode_batch) if bench.size != "tiny" else (2,):
        asked = endless(bench, count)

        whole = partial(encode, runner, asked)
        whole()
        whole()
        watched.recent.clear()
        whole()
        graphs = list(watched.recent)
        figures = {"with the host, ms a picture": bench.host_ms(whole, 3) / count}
        for name, graph in zip(("tower", "encoder and cross"), graphs, strict=False):
            figures[f"{name}, ms a picture"] = bench.device_ms(graph, 5) / count
        add(f"encode of {count}", figures)


def streams(bench: Bench, add: Add) -> None:
    """Measure encodes on a stream of their own: concurrent graphs, then engines with the setting on and off;
    `start` shows the choice of `auto`."""
    if bench.on_gpu:
        two_streams(bench, add)
    bench.drop_service()
    for task, tokens in BESIDE.items():
        for choice in ENCODE_STREAMS:
            add(f"{task}, encode stream {choice}", asdict(beside(bench, tokens, choice)))


def beside(bench: Bench, tokens: int, choice: EncodeStreamChoice) -> Rates:
    """Answers per second of an engine with 30 requests whose pictures differ."""
    concurrency = 30 if bench.on_gpu else 3
    asked = random_requests(bench.size, tokens if bench.on_gpu else 3, 32 if bench.on_gpu else 2)
    engine = replace(bench, encode_stream=choice).engine(bench.model)
    try:
        return measure(
            engine,
            unseen(asked),
            concurrency,
            first=concurrency,
            count=concurrency,
            window_s=2.0 if bench.on_gpu else 0.0,
            patience_s=30.0,
        )
    finally:
        engine.close(drain_s=5.0)
        forget()


@torch.inference_mode()
def two_streams(bench: Bench, add: Add) -> None:
    """Measure a tower's graph concurrently with step graphs: the slowdown of the steps, and both together.

    The tower has its own memory pool, since graphs that share one may not run at the same time.
    """
    runner, watched = bench.service
    _, _, sequences = next(crowds(bench, runner, {"slots": (bench.slots,), "lengths": (64,)}))
    step = graph_of_step(watched, runner, sequences)
    pixels = torch.from_numpy(endless(bench, 1)[0].pixels).to(bench.device)
    batch = pixels.expand(bench.encode_batch, -1, -1, -1).contiguous()
    encode = lambda: [bench.model.encode_images(batch, runner.backend.encode)]  # noqa: E731
    encode()
    tower, _ = CudaGraphCapturer(bench.device).capture(encode)
    if step is None:
        return
    beside = torch.cuda.Stream(bench.device)  # type: ignore[no-untyped-call]
    figures = {"step": bench.device_ms(step, 10), "tower": bench.device_ms(tower, 3)}
    count = max(1, min(20, round(figures["tower"] / figures["step"])))

    def together() -> None:
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            tower()
        for _ in range(count):
            step()
        torch.cuda.current_stream().wait_stream(beside)

    figures["one tower and its steps, one after the other"] = figures["tower"] + count * figures["step"]
    figures["the same on two streams"] = bench.device_ms(together, 3)
    figures["steps"] = count
    add("two streams, ms", figures)
    drop(runner, sequences)


def encode(runner: Runner, asked: Sequence[Request]) -> None:
    """Run a whole encode, and free its slots."""
    drop(runner, runner.encode(asked))


@torch.inference_mode()
def shares(bench: Bench, add: Add) -> None:
    """Measure the rates of a copy and a product on this card, which `ledger/costs.py` assumes."""
    side = 8192 if bench.on_gpu else 256
    matrix = torch.randn(side, side, device=bench.device, dtype=bench.dtype)
    add("matrix product, TFLOP/s", 2 * side**3 / bench.device_ms(lambda: matrix @ matrix, 10) / 1e9)
    block = torch.empty(2**30 if bench.on_gpu else 2**22, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(block)
    add("copy, GB/s", 2 * block.nbytes / bench.device_ms(lambda: other.copy_(block), 10) / 1e6)
    host = torch.empty(2**26 if bench.on_gpu else 2**20, dtype=torch.uint8, pin_memory=bench.on_gpu)
    target = torch.empty_like(host, device=bench.device)
    sent = bench.device_ms(lambda: target.copy_(host, non_blocking=True), 5)
    add("copy from the host, GB/s", host.nbytes / sent / 1e6)
    small = torch.zeros(8, device=bench.device)
    if bench.on_gpu:
        graph = torch.cuda.CUDAGraph()
        small.add_(1)
        with torch.cuda.graph(graph):
            for _ in range(1000):
                small.add_(1)
        add("a small kernel of a graph, us", bench.device_ms(graph.replay, 5))
    add("a small kernel without a graph, us", bench.device_ms(lambda: small.add_(1), 1000) * 1e3)
    d_model, layers, _, ffn_dim, _ = SIZES[bench.size]
    position = 2 * layers * d_model * bench.dtype.itemsize
    weights = layers * (6 * d_model**2 + 2 * d_model * ffn_dim) * bench.dtype.itemsize
    add("bytes a step needs: weights without the head, a position", [weights, position])
    add("positions of a picture", picture_tokens(bench.size))


@torch.inference_mode()
def profiled(bench: Bench, add: Add, traces: Path | None) -> None:
    """Measure time and number of launches by kernel, for replays of a step and of an encode."""
    runner, watched = bench.service
    for slots, length, sequences in crowds(bench, runner, PROFILED):
        graph = graph_of_step(watched, runner, sequences)
        work = partial(run, runner, sequences, 1) if graph is None else replay(graph, sequences)
        trace = traces / f"step_{slots}_{length}.json.gz" if traces and length == 128 else None
        add(f"step, {slots} slots, length {length}", by_kernel(bench, work, REPLAYS, trace))
    asked = endless(bench, bench.encode_batch)
    encode(runner, asked)
    trace = traces / "encode.json.gz" if traces else None
    add(f"encode of {len(asked)}", by_kernel(bench, partial(encode, runner, asked), 3, trace))


def by_kernel(bench: Bench, work: Callable[[], object], repeats: int, trace: Path | None) -> list[list[Any]]:
    """Name, microseconds and launches of one repeat, the longest first."""
    activities = [ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]
    work()
    bench.synchronize()
    with profile(activities=activities) as found:
        for _ in range(repeats if bench.on_gpu else 1):
            work()
        bench.synchronize()
    if trace is not None:
        found.export_chrome_trace(str(trace))
    kind = "CUDA" if bench.on_gpu else "CPU"
    table = []
    for event in found.key_averages():
        if event.device_type.name == kind:
            spent = event.self_device_time_total if bench.on_gpu else event.self_cpu_time_total
            table.append([event.key[:120], round(spent / repeats, 2), event.count / repeats])
    return sorted(table, key=lambda row: -row[1])[:ROWS]
