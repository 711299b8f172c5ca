"""NVIDIA's perf_analyzer, unmodified, over the nine tasks of its `data/load_data_<TASK>.json`: one table.

    FLORENCE_MODEL=demo make serve                             # in another terminal
    python benchmarks/perf_analyzer.py PATH_OF_PERF_ANALYZER   # windows of 20 s, 30 at once, HTTP and gRPC

perf_analyzer is on PyPI, and in NVIDIA's container of Triton's SDK. Each row has the clients' figures and,
from the service's own statistics, the parts of a request's time: waiting, reading its picture, in the model,
making the reply. Where perf_analyzer fails, its message stands in place of numbers, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from command import parser_of

from florence.types.tasks import TRITON_TASKS

ROOT = Path(__file__).resolve().parents[1]
TASKS = tuple(token.strip("<>") for token in TRITON_TASKS)
# perf_analyzer's lines for each figure; times are in microseconds.
NUMBERS = {
    "Throughput": r"Throughput: ([\d.]+) infer/sec",
    "Avg latency": r"Avg latency: (\d+) usec",
    "p99 latency": r"p99 latency: (\d+) usec",
    "queue": r"queue (\d+) usec",
    "input": r"compute input (\d+) usec",
    "infer": r"compute infer (\d+) usec",
    "output": r"compute output (\d+) usec",
}


@dataclass(frozen=True)
class Row:
    """The figures of one task over one protocol. milliseconds: by the names of NUMBERS, except the first."""

    task: str
    protocol: str
    rate: float
    milliseconds: dict[str, float]

    def __str__(self) -> str:
        times = " | ".join(f"{self.milliseconds[name]:.1f}" for name in list(NUMBERS)[1:])
        return f"| {self.task} | {self.protocol} | {self.rate:.1f} | {times} |"


def run(arguments: argparse.Namespace, task: str, protocol: str) -> Row | None:
    """Run perf_analyzer once; print the failure and return None if it fails."""
    command = [
        arguments.perf_analyzer, "-m", "florence2", "-v",
        "--measurement-mode", "time_windows",
        "--measurement-interval", str(arguments.interval),
        "--concurrency-range", str(arguments.concurrency),
        "--input-data", str(arguments.data / f"load_data_{task}.json"),
        *(["-u", arguments.grpc, "-i", "grpc"] if protocol == "gRPC" else ["-u", arguments.http]),
        *arguments.more,
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return read(task, protocol, ran.stdout)
    lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    print(f"| {task} | {protocol} | failed with {ran.returncode}: {' '.join(lines[-2:])} |")
    return None


def read(task: str, protocol: str, printed: str) -> Row:
    """The figures in perf_analyzer's output."""
    summary = printed[printed.index("  Client:") :]
    found = {name: re.search(pattern, summary) for name, pattern in NUMBERS.items()}
    values = {name: float(match.group(1)) for name, match in found.items() if match}
    if len(values) < len(NUMBERS):
        raise SystemExit(f"perf_analyzer did not say {sorted(NUMBERS.keys() - values.keys())}:\n{printed}")
    rate = values.pop("Throughput")
    return Row(task, protocol, rate, {name: value / 1000 for name, value in values.items()})


def main() -> None:
    """Run the command."""
    parser = parser_of(__doc__)
    parser.add_argument("perf_analyzer", help="the program, or a script that runs it with its arguments")
    parser.add_argument("more", nargs="*", help="more options of perf_analyzer's, after --")
    parser.add_argument("--http", default="127.0.0.1:8000", metavar="HOST:PORT")
    parser.add_argument("--grpc", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where the load_data files are")
    parser.add_argument("--interval", type=int, default=20_000, help="a window in milliseconds")
    parser.add_argument("--concurrency", type=int, default=30, help="requests at once")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="TASK")
    parser.add_argument("--protocols", nargs="+", default=["HTTP", "gRPC"], choices=["HTTP", "gRPC"])
    arguments = parser.parse_args()
    print("| task | over | infer/s | latency, ms | p99 | queue | compute input | infer | output |")
    print("|---|---|---|---|---|---|---|---|---|")
    failed = False
    for task in arguments.tasks:
        for protocol in arguments.protocols:
            row = run(arguments, task, protocol)
            failed |= row is None
            if row is not None:
                print(row)
            sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()
