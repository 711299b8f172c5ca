"""Measure the cost of a long queue and of many requests: throughput and memory of the demo checkpoint.

    python benchmarks/endurance.py

It compares throughput with 256 requests in flight and with 32, in turns, and the process's memory after 2,000
requests and after 200. Requests ask about drawn scenes, with the tasks in turn, through the Python library;
the engine reserves its memory at the start, as in the service. `--picture-cache-bytes` limits the memory for
pictures, which otherwise grows to its own limit while new ones come; by default 200 requests fill it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

from command import parser_of
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florence import Florence2
from florence.answers.answer import Answer
from florence.demo.world.drawing import held_out
from florence.demo.world.scenes import Limits
from florence.engine.config import EngineConfig

Ask = tuple[Image.Image, str, str | None]


def questions() -> Iterator[Ask]:
    """All questions about sixty scenes, repeated without end."""
    asked = [
        (image, question.task, question.text)
        for _, image, questions in held_out(7, 60, Limits())
        for question in questions
    ]
    while True:
        yield from asked


def run(model: Florence2, asked: Iterable[Ask], under_way: int) -> tuple[int, float]:
    """Answer all questions, `under_way` at once; return their number and the seconds."""
    waiting: deque[Future[Answer]] = deque()
    started, count = time.perf_counter(), 0
    for ask in asked:
        if len(waiting) >= under_way:
            waiting.popleft().result()
        waiting.append(model.submit(*ask))
        count += 1
    for future in waiting:
        future.result()
    return count, time.perf_counter() - started


def resident_bytes() -> int:
    """The memory of this process, in bytes."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--answers", type=int, default=3 * 256, help="of each measurement in each turn")
    parser.add_argument("--picture-cache-bytes", type=int, default=2**18)
    parser.add_argument("--threads", type=int, help="of the engine")
    arguments = parser.parse_args()
    source = questions()
    with Florence2.load(
        "demo",
        dtype=arguments.dtype,
        config=EngineConfig(
            max_queue=512,
            threads=arguments.threads,
            picture_cache_bytes=arguments.picture_cache_bytes,
            reserved=True,
        ),
    ) as model:
        run(model, islice(source, arguments.few), 32)
        few = resident_bytes()
        run(model, islice(source, arguments.many - arguments.few), 32)
        many = resident_bytes()
        rates: dict[int, list[float]] = {32: [], 256: []}
        for _ in range(arguments.turns):
            for under_way, found in rates.items():
                count, seconds = run(model, islice(source, arguments.answers), under_way)
                found.append(count / seconds)
    print(f"memory after {arguments.few} requests {few / 2**20:.1f} MiB, after {arguments.many} "
          f"{many / 2**20:.1f} MiB: {100 * (many / few - 1):+.2f}%")  # fmt: skip
    if not arguments.turns:
        return
    medians = {under_way: statistics.median(found) for under_way, found in rates.items()}
    print(f"{medians[32]:.1f} answers/s with 32 under way, {medians[256]:.1f} with 256: "
          f"{100 * (medians[256] / medians[32] - 1):+.1f}%")  # fmt: skip


if __name__ == "__main__":
    main()
