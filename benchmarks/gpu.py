"""Everything about the engine on one GPU, in one run of under nine minutes.

    python benchmarks/gpu.py --json gpu.json          # on a GPU, Florence-2-large sizes
    python benchmarks/gpu.py --rehearse               # on a CPU, tiny sizes: that the script itself works
    python benchmarks/gpu.py --only replays profile   # some sections

Needs torch, timm, transformers, einops, safetensors, numpy and Pillow, and this repository; no service.

smoke         what is installed, captures at tiny size, attention backends against plain attention
start         seconds and memory until ready; where encodes run, and what both ways took
exactness     ids against `transformers.generate` in float32 on the same card, with the gaps of mismatches;
              the served dtype alone, in a crowd, and against float32
shares        what a copy, a product and a small kernel take: the costs that `gpu_ledger.py` assumes
replays       graphs between device events, on a grid of slots and lengths, and encodes; what the host adds
profile       time by kernel of steps and encodes
streams       a tower beside steps on two streams; two tasks with FLORENCE_ENCODE_STREAM=on and off
rows          nine tasks by the service's engine at 30, 36 and 64, pictures that differ and one; p50 and p99
transformers  its best static batch
variants      ways to compute one thing, and each kernel of the project against its twin
drift         logits of other dtypes and of fp8 against float32

A section that fails is tried again without cuDNN's attention, then without graphs, and the others go on; one
that hangs, or breaks the device, ends the process, and a new one does the rest. Clocks and power are read
before and after each. `--json` is written as figures come. Weights are random, lengths of outputs are set.

On a lent machine that keeps only what is written to the folder $OUT, one command, a little longer than the
script's own limit:

    set -o pipefail; PYTHONUNBUFFERED=1 timeout 540 python3 benchmarks/gpu.py
        --json $OUT/gpu.json --traces $OUT 2>&1 | tee $OUT/log
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from command import parser_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from on_gpu import exact, replays, tables, variants
from on_gpu.bench import Bench, without_cudnn_attention
from on_gpu.sections import Lost, Report, Section, Sections, go_on, watch
from random_models import SIZES

STOP_S = 480.0
GRACE_S = 20.0  # seconds after which the process is ended
CLOCKS = "clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,utilization.gpu"
PACKAGES = ("torch", "triton", "transformers", "timm", "einops", "safetensors", "numpy", "Pillow")


def sections_of(bench: Bench, ends_at: float, window_s: float, traces: Path | None) -> list[Section]:
    """The sections, the most important ones first."""

    def smoke(add: Any) -> None:
        add("versions", versions(bench))
        exact.smoke(bench, add)

    return [
        Section("smoke", 90, smoke),
        Section("start", 120, partial(replays.start, bench)),
        Section("exactness", 150, partial(exact.exactness, bench)),
        Section("shares", 20, partial(replays.shares, bench)),
        Section("replays", 75, partial(replays.grid, bench)),
        Section("profile", 60, partial(replays.profiled, bench, traces=traces)),
        Section("streams", 60, partial(replays.streams, bench)),
        Section(
            "rows",
            200,
            partial(tables.nine_rows, bench, until=ends_at - 150, window_s=window_s),
        ),
        Section("transformers", 90, partial(tables.through_transformers, bench, until=ends_at - 60)),
        Section("variants", 60, partial(variants.variants, bench)),
        Section("drift", 40, partial(exact.drift, bench)),
    ]


def versions(bench: Bench) -> dict[str, Any]:
    """The versions of the packages, and the device."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "size": bench.size,
        "dtype": str(bench.dtype),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if bench.on_gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        found["device"] = str(properties)
        found["cuda, cudnn"] = [torch.version.cuda, torch.backends.cudnn.version()]
    return found


def clocks() -> list[str] | None:
    """Clocks, power and temperature, as nvidia-smi reads them."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    try:
        read = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return None
    return read.stdout.strip().split(", ")


def is_lost(bench: Bench) -> bool:
    """True if the device accepts no more work: an illegal access remains until the process ends."""
    if not bench.on_gpu:
        return False
    try:
        return float(torch.ones(1, device=bench.device).sum()) != 1.0
    except RuntimeError:
        return True


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--size", choices=sorted(set(SIZES) - {"tiny"}), default="large")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument(
        "--window-s", type=float, default=2.5, help="seconds of each of the nine rows' figures"
    )
    parser.add_argument("--stop-s", type=float, default=STOP_S, help="seconds after which nothing begins")
    parser.add_argument("--only", nargs="+", help="sections to run, by name")
    parser.add_argument("--json", type=Path, help="write the figures here as they come")
    parser.add_argument("--traces", type=Path, help="write the profiler's traces into this folder")
    parser.add_argument("--ends-at", type=float, help=argparse.SUPPRESS)  # for a continued run
    arguments = parser.parse_args(words)
    if not (arguments.rehearse or torch.cuda.is_available()):
        parser.error("no CUDA device; --rehearse runs tiny sizes on the CPU")
    return arguments


def main() -> None:
    """Run the sections and print the table."""
    arguments = parse()
    gc.freeze()  # sections collect garbage, which need not scan the imports
    resumed = arguments.ends_at is not None
    ends_at = arguments.ends_at if resumed else time.time() + arguments.stop_s
    watch(ends_at - time.time() + GRACE_S)
    if arguments.rehearse:
        torch.set_num_threads(1)
        bench = Bench("tiny", torch.device("cpu"), torch.bfloat16, slots=4, encode_batch=2)
    else:
        bench = Bench(arguments.size, torch.device("cuda:0"), getattr(torch, arguments.dtype))
    report = Report.resumed(arguments.json) if resumed else Report(arguments.json)
    sections = sections_of(bench, ends_at, arguments.window_s, arguments.traces)
    if arguments.rehearse:  # the machine may be busy
        sections = [replace(section, limit_s=arguments.stop_s) for section in sections]
    names = [section.name for section in sections]
    if unknown := set(arguments.only or ()) - set(names):
        sys.exit(f"no section is named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    wanted = [section for section in sections if arguments.only is None or section.name in arguments.only]
    ways = [("without cuDNN's attention", without_cudnn_attention), ("without graphs", bench.uncaptured)]
    running = Sections(report, ends_at, ways, clocks, partial(is_lost, bench))
    try:
        running.run(wanted)
    except Lost as error:
        left: list[Section] = list(error.args[0])
        report.add("run", "a new process after", error.__cause__.args[0] if error.__cause__ else "")
        if left:
            bench.close()
            go_on([section.name for section in left], {"--ends-at": str(ends_at)})
    print(tables.table(report.figures))
    print(f"{time.time() - ends_at + arguments.stop_s:.0f} s in all", flush=True)
    bench.close()
    sys.stdout.flush()
    os._exit(1 if any("failed" in figures for figures in report.figures.values()) else 0)


if __name__ == "__main__":
    main()
