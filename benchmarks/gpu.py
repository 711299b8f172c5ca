"""The engine on one GPU: exactness, drift, the nine tasks' throughput, shares of peak, memory, transformers.

    python benchmarks/gpu.py                  # on a GPU, Florence-2-large sizes, under nine minutes
    python benchmarks/gpu.py --rehearse       # on a CPU, tiny sizes: that the script itself works

Needs torch, timm, transformers, einops, safetensors and Pillow, and this repository. Weights are random;
lengths of outputs are set, so each task generates as many tokens as it does on photographs. Pictures differ
from request to request and nothing is remembered of them, so each goes through the tower.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from closed_loop import PROMPT_TOKENS, TASKS, generate_static, options, requests, throughput
from random_models import SIDE, SIZES, VOCAB, convert, make_native, picture_tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import Florence2ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florence.engine.config import EngineConfig
from florence.engine.device.graphs import CudaRecorder, PlainRecorder
from florence.engine.device.reference import generate_alone
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.sequence import SequenceState
from florence.model.florence2 import Florence2Model

REPLACED = {  # pictures/s of the replaced Triton ensemble, RTX 4090, float16, 3 beams, concurrency 36
    "CAPTION": 26.6,
    "DETAILED_CAPTION": 14.5,
    "MORE_DETAILED_CAPTION": 19.6,
    "CAPTION_TO_PHRASE_GROUNDING": 29.7,
    "OD": 5.8,
    "DENSE_REGION_CAPTION": 7.3,
    "REGION_PROPOSAL": 6.3,
    "OCR": 29.4,
    "OCR_WITH_REGION": 21.6,
}
ENCODE_BATCH = 16
TABLE_S, PEER_S = 330.0, 480.0  # from the start, by which the engine's table and transformers' are done


@dataclass(frozen=True)
class Bench:
    """What is measured: sizes, device, how long each window lasts, concurrencies, static batches."""

    size: str
    device: torch.device
    dtype: torch.dtype
    window_s: float
    concurrencies: tuple[int, ...]
    static_batches: tuple[int, ...]
    tokens_of: dict[str, int]
    until: float = math.inf  # a reading of `time.monotonic()` by which the tables shall be done

    def runner(self, model: Florence2Model, slots: int) -> Runner:
        on_gpu = self.device.type == "cuda"
        recorder = CudaRecorder(self.device) if on_gpu else PlainRecorder()
        return Runner(
            model,
            slots,
            picture_tokens=picture_tokens(self.size),
            encode_batch=min(slots, ENCODE_BATCH),
            picture_size=(SIDE[self.size], SIDE[self.size]),
            feature_bytes=0,
            recorder=recorder,
            late=on_gpu,
        )

    def engine(self, model: Florence2Model, slots: int, budget_s: float = 0.05) -> Engine:
        config = EngineConfig(
            max_batch_size=slots,
            max_encode_batch=min(slots, ENCODE_BATCH),
            max_queue=4 * slots,
            encode_budget_ms=budget_s * 1000,
            max_prompt_tokens=1024 - picture_tokens(self.size),
        )
        return Engine(self.runner(model, slots), config)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median seconds of the work."""
        work()
        times = []
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times)


def exactness(bench: Bench) -> dict[str, object]:
    """Ids in a crowd against the plain search alone, float32, tiny and base sizes.

    Twice, so that what the first round recorded is what the second one runs, with decode steps between all
    parts of all encodes.
    """
    report: dict[str, object] = {}
    for size in ("tiny", "base") if bench.size == "large" else ("tiny",):
        small = replace(bench, size=size, dtype=torch.float32)
        model = convert(make_native(size, torch.float32), bench.device, torch.float32)
        asked = [
            replace(request, options=replace(options(24, 1 + index % 5), min_new_tokens=0))
            for index, request in enumerate(requests(size, 24, 15))
        ]
        with torch.inference_mode():
            rules = small.runner(model, 1).rules
            alone = [tuple(generate_alone(model, request, rules).token_ids) for request in asked]
        engine = small.engine(model, 16, budget_s=1e-4)
        same = 0
        for _ in range(2):
            futures = [engine.submit(request) for request in asked]
            same += sum(future.result().token_ids == own for future, own in zip(futures, alone, strict=True))
        engine.close()
        report[size] = {"requests": 2 * len(asked), "same ids": same}
    return report


@torch.inference_mode()
def drift(bench: Bench) -> dict[str, object]:
    """Logits of the same forced tokens in lower precision against float32."""
    native = make_native(bench.size, torch.float32)
    pixels = torch.from_numpy(np.stack([request.pixels for request in requests(bench.size, 1, 2)]))
    ids = torch.randint(100, VOCAB - 1100, (2, 24), generator=torch.Generator().manual_seed(0))

    def logits(dtype: torch.dtype) -> torch.Tensor:
        model = convert(native, bench.device, dtype)
        prompt = torch.tensor([[0, 100, 101, 2]] * 2, device=bench.device)
        encoded = model.encode(model.look(pixels.to(bench.device)), prompt)
        states, _ = model.language.decode(ids.to(bench.device), None, model.language.decoder.cross(encoded))
        return model.language.logits(states)

    exact = logits(torch.float32)
    report: dict[str, object] = {"spread of float32 logits": float(exact.std())}
    for dtype in (torch.bfloat16, torch.float16):
        lower = logits(dtype)
        report[str(dtype)] = {
            "mean difference": float((lower - exact).abs().mean()),
            "same first choice": float((lower.argmax(-1) == exact.argmax(-1)).float().mean()),
        }
    return report


@torch.inference_mode()
def shares_of_peak(bench: Bench, model: Florence2Model) -> dict[str, object]:
    """Encode in FLOP, a decode step in bytes, against a matrix product and a copy on the same device."""
    side = 8192 if bench.device.type == "cuda" else 512
    matrix = torch.randn(side, side, device=bench.device, dtype=bench.dtype)
    flops = 2 * side**3 / bench.timed(lambda: matrix @ matrix)
    block = torch.empty(
        2**30 if bench.device.type == "cuda" else 2**24, dtype=torch.uint8, device=bench.device
    )
    other = torch.empty_like(block)
    bandwidth = 2 * block.nbytes / bench.timed(lambda: other.copy_(block))
    asked = requests(bench.size, 40, ENCODE_BATCH)
    pixels = torch.from_numpy(np.stack([request.pixels for request in asked])).to(bench.device)
    prompts = torch.tensor([request.prompt_ids for request in asked], device=bench.device)
    with FlopCounterMode(display=False) as counter:
        model.encode(model.look(pixels), prompts)
    slots = max(*bench.concurrencies, ENCODE_BATCH)
    runner = bench.runner(model, slots)
    runner.prepare()
    encode_s = bench.timed(lambda: [runner.drop(sequence) for sequence in runner.encode(asked)])
    sequences: list[SequenceState] = []
    while len(sequences) < slots:
        sequences += runner.encode(asked[: min(ENCODE_BATCH, slots - len(sequences))])
    for _ in range(4):
        runner.step(sequences)
    step_s = bench.timed(lambda: runner.step(sequences), repeats=9)
    text = model.config.text
    layer = 6 * text.d_model**2 + 2 * text.d_model * text.decoder.ffn_dim
    weights = (text.decoder.layers * layer + text.d_model * text.vocab_size) * bench.dtype.itemsize
    length = picture_tokens(bench.size) + PROMPT_TOKENS
    layers, _, heads, _, head_dim = runner.caches.cross_keys.shape
    cross = 2 * slots * layers * length * heads * head_dim * bench.dtype.itemsize
    return {
        "matrix product, TFLOP/s": flops / 1e12,
        "copy, GB/s": bandwidth / 1e9,
        "encode, ms a picture": encode_s / len(asked) * 1e3,
        "encode, share of the matrix product": counter.get_total_flops() / encode_s / flops,
        f"decode step of {slots} requests, ms": step_s * 1e3,
        "decode step, share of the copy": (weights + cross) / step_s / bandwidth,
        "caches, GiB": runner.caches.nbytes / 2**30,
    }


def nine_tasks(bench: Bench, model: Florence2Model) -> dict[str, dict[str, float]]:
    """Pictures/s of each task at each concurrency."""
    table: dict[str, dict[str, float]] = {task: {} for task in bench.tokens_of}
    windows = len(bench.concurrencies) * len(bench.tokens_of)
    for concurrency in bench.concurrencies:
        engine = bench.engine(model, concurrency)
        for task, tokens in bench.tokens_of.items():
            asked = requests(bench.size, tokens)
            window_s = min(bench.window_s, max(0.5, (bench.until - time.monotonic()) / windows))
            windows -= 1
            rate = throughput(
                engine, asked, concurrency, first=concurrency, count=concurrency, window_s=window_s
            )
            table[task][str(concurrency)] = rate
            print(f"  {task:28} {concurrency:3} at once: {rate:8.1f} pictures/s", flush=True)
        engine.close()
        del engine
        forget()
    return table


def through_transformers(bench: Bench, native: Florence2ForConditionalGeneration) -> dict[str, float]:
    """Pictures/s of `generate` on the best of some static batches; nan where no batch fits the memory, or
    no time is left."""
    native = native.to(bench.device)
    table: dict[str, float] = {}
    for task, tokens in bench.tokens_of.items():
        rates = [math.nan]
        for batch in bench.static_batches:
            asked = requests(bench.size, tokens, batch)
            work = partial(generate_static, native, asked, bench.dtype, bench.device)
            if time.monotonic() > bench.until:
                break
            try:
                rates.append(batch / bench.timed(work, repeats=1))
            except torch.OutOfMemoryError as error:
                print(f"  {task:28} transformers, batch of {batch}: {error}", flush=True)
        table[task] = max(rates[1:], default=math.nan)
        print(f"  {task:28} transformers: {table[task]:8.1f} pictures/s", flush=True)
    return table


def forget() -> None:
    """Free what nobody uses any more, before the next ones take their memory: recordings refer to themselves,
    and PyTorch keeps what it has freed."""
    gc.collect()
    torch.cuda.empty_cache()


def report_table(rows: dict[str, dict[str, float]], peer: dict[str, float]) -> str:
    """The nine tasks as a Markdown table."""
    concurrencies = list(next(iter(rows.values())))
    head = ["task", *(f"{c} at once" for c in concurrencies), "transformers", "ratio", "replaced ensemble"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for task, rates in rows.items():
        best = max(rates.values())
        cells = [*(f"{rate:.1f}" for rate in rates.values()), f"{peer[task]:.1f}", f"{best / peer[task]:.1f}"]
        lines.append(" | ".join([task, *cells, f"{REPLACED[task]}"]))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--size", choices=sorted(set(SIZES) - {"tiny"}), default="large")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--window-s", type=float, default=4.0, help="seconds of each throughput figure")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.rehearse:
        short = {task: max(2, tokens // 10) for task, tokens in TASKS.items()}
        bench = Bench("tiny", torch.device("cpu"), torch.bfloat16, 0.1, (3,), (2,), short)
    elif torch.cuda.is_available():
        dtype = getattr(torch, arguments.dtype)
        device = torch.device("cuda:0")
        bench = Bench(arguments.size, device, dtype, arguments.window_s, (30, 36, 64), (16, 64), TASKS)
    else:
        parser.error("no CUDA device; --rehearse runs tiny sizes on the CPU")
    started = time.monotonic()
    on_gpu = bench.device.type == "cuda"
    device_name = torch.cuda.get_device_name(bench.device) if on_gpu else "CPU"
    figures: dict[str, object] = {"device": device_name, "size": bench.size, "dtype": str(bench.dtype)}

    def section(name: str, value: object) -> None:
        figures[name] = value
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"{name} ({time.monotonic() - started:.0f} s)", flush=True)
        print(json.dumps(value, indent=2), flush=True)

    section("exactness, float32", exactness(bench))
    section("drift", drift(bench))
    native = make_native(bench.size, bench.dtype)
    model = convert(native, bench.device, bench.dtype)
    section("shares of peak", shares_of_peak(bench, model))
    forget()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rows = nine_tasks(replace(bench, until=started + TABLE_S), model)
    section("nine tasks", rows)
    if on_gpu:
        section("most memory in use, GiB", torch.cuda.max_memory_allocated() / 2**30)
    peer = through_transformers(replace(bench, until=started + PEER_S), native)
    section("transformers", peer)
    print(report_table(rows, peer))
    print(f"{device_name}, {bench.size}, {bench.dtype}: {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
