"""`florence bulk` against a service whose model is an echo of 10 ms: its rate, and its memory.

    python benchmarks/bulk.py --pictures 100000

In each round the service's own rate is measured with as little client work as possible, before and after
`florence bulk` asks about `--pictures` small pictures, each in a file of its own. Prints the rates, the
medians of their means and of the ratio, and the memory of the last command at a quarter, a half, three
quarters and the end.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from bodies import FORM, form
from command import medians, parser_of
from light_path import answered, http_sender
from PIL import Image
from serving import ROOT, Server, serving

SIDE = 64  # pixels


def main() -> None:
    """Run the command."""
    parser = parser_of(__doc__)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=1, help="pictures that the echo answers side by side")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of each measurement of the service alone"
    )
    arguments = parser.parse_args()
    environment = {"FLORENCE_MODEL": "demo", "ECHO_AT_ONCE": str(arguments.at_once)}
    rows: list[tuple[float, float]] = []
    with serving("echo_services:slow_echo", Path(__file__).parent, **environment) as server:
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                content = make_pictures(Path(folder) / "in", arguments.pictures)
                before = own_rate(server, content, arguments.seconds, arguments.concurrency)
                rate, memory = bulk_rate(server, Path(folder), arguments.pictures, arguments.concurrency)
                after = own_rate(server, content, arguments.seconds, arguments.concurrency)
            rows.append(((before + after) / 2, rate))
            print(
                f"the service alone: {before:.1f} requests/s before, {after:.1f} after; "
                f"florence bulk: {rate:.1f} pictures/s",
                flush=True,
            )
    alone, bulk, ratio = medians((alone, rate, rate / alone) for alone, rate in rows)
    print(f"medians: {alone:.1f} and {bulk:.1f}; of their ratios: {ratio:.3f}")
    quarters = [memory[max(len(memory) * quarter // 4 - 1, 0)] for quarter in (1, 2, 3, 4)]
    print("its memory: " + ", ".join(f"{size / 2**20:.1f}" for size in quarters) + " MiB")


def make_pictures(folder: Path, count: int) -> bytes:
    """Write `count` files with the same content, and return it."""
    folder.mkdir()
    file = io.BytesIO()
    Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(file, "JPEG")
    for number in range(count):
        (folder / f"{number:06}.jpg").write_bytes(file.getvalue())
    return file.getvalue()


def own_rate(server: Server, picture: bytes, seconds: float, connections: int) -> float:
    """Requests per second of clients that send one body repeatedly, each over its own connection."""
    body, kind = form(picture), FORM["Content-Type"]
    count, taken = answered(
        [http_sender(server, "/caption", body, kind) for _ in range(connections)], seconds
    )
    return count / taken


def bulk_rate(server: Server, folder: Path, count: int, concurrency: int) -> tuple[float, list[int]]:
    """Pictures per second from the first answer to the last, and the command's memory (RSS) at each
    second."""
    out = folder / "r.jsonl"
    command = [
        sys.executable, "-m", "florence.cli", "bulk", str(folder / "in"), "--out", str(out),
        "--task", "caption", "--url", server.url, "--concurrency", str(concurrency), "--no-progress",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT)
    seen = psutil.Process(process.pid)
    while not (out.exists() and out.stat().st_size):
        if process.poll() is not None:
            raise SystemExit("florence bulk ended before its first answer")
        time.sleep(0.005)
    started, memory, first = time.perf_counter(), [seen.memory_info().rss], seen.cpu_times()
    last, before = first, count_lines(out)
    while True:
        try:
            status = process.wait(1.0)
            break
        except subprocess.TimeoutExpired:
            memory.append(seen.memory_info().rss)
            last, answered = seen.cpu_times(), count_lines(out) - before
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"florence bulk ended with status {status}")
    if last is not first and answered:
        used_s = last.user + last.system - first.user - first.system
        print(f"CPU time of bulk: {1000 * used_s / answered:.2f} ms a picture")
    return count / seconds, memory


def count_lines(file: Path) -> int:
    """The number of answers in the file."""
    return file.read_bytes().count(b"\n")


if __name__ == "__main__":
    main()
