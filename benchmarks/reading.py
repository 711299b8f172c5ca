"""Pictures read a second, by number of readers, in threads and in processes; decoding and resizing apart.

    python benchmarks/reading.py [--readers 1,2] [--pictures 60] [--rounds 3] [--tiny]

The pictures are drawn: smooth colours with noise, as JPEG of 0.7 and 12 megapixels and PNG of 0.7. Each is
resized to 768 x 768. `ms` are CPU times of one thread. Pictures per second are medians of the rounds, in
which the kinds of readers take turns; four pictures for each reader wait at any time. CPU ms per picture are
those of this process and its readers together. Memory is that of one reader process after all rounds.
"""

from __future__ import annotations

import io
import os
import re
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from command import medians, parser_of
from PIL import Image

from florence.images.decode import decode, inspect
from florence.images.limits import DEFAULT_LIMITS
from florence.images.preprocess import InputSize, read_tiles, resize
from florence.images.seen import ORIGINAL
from florence.readers.picture import ReadPicture
from florence.readers.processes import ProcessReaders
from florence.readers.readers import Readers, ThreadReaders

SIDE = 768


def draw(width: int, height: int, format: str) -> bytes:
    """A picture file with large soft shapes, finer ones over them, and grain."""
    random = np.random.default_rng(0)
    picture = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((6, 110), (60, 40), (400, 12)):
        levels = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(levels).resize((width, height), 3), np.float32) * (weight / 255)
    picture += random.normal(40, 3, picture.shape)
    file = io.BytesIO()
    options = {"quality": 90} if format == "JPEG" else {}
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, format, **options)
    return file.getvalue()


def milliseconds(run: Callable[[], object], times: int) -> float:
    """CPU time of one run, the median of several."""
    found = []
    for _ in range(times):
        start = time.thread_time()
        run()
        found.append(time.thread_time() - start)
    return statistics.median(found) * 1000


def print_parts(name: str, data: bytes, size: InputSize, times: int) -> None:
    """Print the times of decoding and resizing in one thread, and the effect of `fast_jpeg`."""
    header = inspect(data, DEFAULT_LIMITS)
    image, (width, height) = decode(header, ORIGINAL)
    fast = InputSize(size.height, size.width, size.resample, fast_jpeg=True)

    def read(one: InputSize) -> object:
        return [*read_tiles(inspect(data, DEFAULT_LIMITS), one)[1]]

    line = (
        f"{name:10} {width * height / 1e6:5.1f} MP {len(data) / 1e6:6.2f} MB"
        f"  decode {milliseconds(lambda: decode(inspect(data, DEFAULT_LIMITS), ORIGINAL), times):7.1f} ms"
        f"  resize {milliseconds(lambda: resize(image, size), times):6.1f} ms"
        f"  both {milliseconds(lambda: read(size), times):7.1f} ms"
    )
    exact, near = (np.asarray(next(read_tiles(header, one)[1]), dtype=int) for one in (size, fast))
    difference = np.abs(exact - near)
    if difference.any():
        line += (
            f"  fast JPEG: both {milliseconds(lambda: read(fast), times):6.1f} ms,"
            f" pixels differ by {difference.mean():.2f} levels, at most {difference.max()}"
        )
    print(line, flush=True)


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of this process and the readers."""
    ticks = 0
    for pid in [os.getpid(), *pids]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rate(readers: Readers, pids: list[int], data: bytes, pictures: int) -> tuple[float, float]:
    """Pictures per second, and CPU milliseconds per picture."""
    start, cpu = time.perf_counter(), cpu_seconds(pids)
    waiting: deque[Future[ReadPicture]] = deque()
    for _ in range(pictures):
        if len(waiting) >= 4 * len(readers):
            waiting.popleft().result()
        waiting.append(readers.read(data))
    while waiting:
        waiting.popleft().result()
    return pictures / (time.perf_counter() - start), (cpu_seconds(pids) - cpu) * 1000 / pictures


def memory(pid: int) -> str:
    """The USS and PSS of a process."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M))
    private = int(found["Private_Clean"]) + int(found["Private_Dirty"])
    return f"{private / 1024:.0f} MiB private (USS), {int(found['Pss']) / 1024:.0f} MiB PSS"


def print_rates(
    name: str, data: bytes, size: InputSize, counts: list[int], pictures: int, rounds: int
) -> None:
    """Print the rates of all kinds and numbers of readers, which take turns."""
    threads = {count: ThreadReaders(size, count=count) for count in counts}
    processes = {count: ProcessReaders(size, count=count) for count in counts}
    measured: dict[tuple[str, int], tuple[Readers, list[int]]] = {}
    for count in counts:
        measured["threads", count] = threads[count], []
        measured["processes", count] = processes[count], processes[count].pids
    for readers, pids in measured.values():
        rate(readers, pids, data, 2 * len(readers))
    found: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in measured}
    for _ in range(rounds):
        for key, (readers, pids) in measured.items():
            found[key].append(rate(readers, pids, data, pictures))
    base: dict[str, float] = {}
    for (kind, count), rows in found.items():
        pictures_s, cpu_ms = medians(rows)
        base.setdefault(kind, pictures_s)
        print(
            f"{name:10} {kind:9} {count:2} readers {pictures_s:7.1f} pictures/s"
            f"  ({pictures_s / base[kind]:.2f} times {counts[0]})  {cpu_ms:6.1f} CPU-ms a picture"
        )
    print(f"{name:10} a reader process: {memory(processes[counts[0]].pids[0])}", flush=True)
    for readers, _ in measured.values():
        readers.close()


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--readers", default="1,2", help="numbers of readers, with commas")
    parser.add_argument("--pictures", type=int, default=60, help="of 0.7 megapixels a round; a fifth of 12")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small pictures, to see that it runs")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.readers.split(",")]
    small, large = ((64, 48), (160, 120)) if arguments.tiny else ((1024, 683), (4000, 3000))
    side = 24 if arguments.tiny else SIDE
    size = InputSize(side, side, 3)
    pictures = {
        "JPEG small": (draw(*small, "JPEG"), arguments.pictures),
        "JPEG large": (draw(*large, "JPEG"), max(1, arguments.pictures // 5)),
        "PNG small": (draw(*small, "PNG"), arguments.pictures),
    }
    for name, (data, _) in pictures.items():
        print_parts(name, data, size, 9)
    for name, (data, count) in pictures.items():
        print_rates(name, data, size, counts, count, arguments.rounds)


if __name__ == "__main__":
    main()
