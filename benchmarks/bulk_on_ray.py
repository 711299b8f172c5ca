"""`florence bulk --ray` with one actor against plain `florence bulk`, on this machine; and what Ray costs.

    python benchmarks/bulk_on_ray.py --size base --pictures 300

Both commands load the same model on all cores, one after the other in each round. Each runs with a quarter of
the pictures and with all: the rate is that of the other three quarters, from the difference of both times,
and so contains neither imports nor loading. Then actors that answer immediately show the cost of scheduling a
batch, and the size of a picture in Ray's object store: a name and an answer, or with an archive the picture
too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from command import parser_of
from PIL import Image
from serving import ROOT
from under_load import write_checkpoint

sys.path.insert(0, str(ROOT))

from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Ask, Job, QuestionOutcome
from florence.ray.pool import ActorPool, cluster
from florence.ray.rows import as_lines, job_block
from florence.ray.run import RayRun
from florence.ray.source import JobSource
from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.results import Text
from florence.types.tasks import TASKS

QUESTION = PictureQuestion(TASKS["<CAPTION>"])
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    """Run the command."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", default="base", help="of random weights, or demo")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--echo-pictures", type=int, default=4000)
    parser.add_argument("--cores", type=int, default=CORES, help="of the actor with a model")
    parser.add_argument("--ray", default="local", help="cluster's address; default: started for each run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = "demo"
        if arguments.size != "demo":
            model = str(Path(folder) / "model")
            write_checkpoint(Path(model), arguments.size, torch.float32)
        draw_pictures(Path(folder) / "in", arguments.pictures)
        ratios = []
        for _ in range(arguments.rounds):
            command = bulk_command(model, arguments.concurrency)
            plain = rate_of(command, Path(folder), arguments.pictures)
            on_ray = [*command, "--ray", arguments.ray, "--cpus-per-actor", str(arguments.cores)]
            ray = rate_of(on_ray, Path(folder), arguments.pictures)
            ratios.append(ray / plain)
            load = os.getloadavg()[0]
            print(f"plain {plain:.2f}, one actor {ray:.2f} pictures/s: {ratios[-1]:.3f}; load {load:.1f}")
    print(f"median of the ratios: {statistics.median(ratios):.3f}")
    print_overheads(arguments.echo_pictures, arguments.ray)


def bulk_command(model: str, concurrency: int) -> list[str]:
    """The command that asks for a caption of each picture."""
    return [
        sys.executable, "-m", "florence.cli", "bulk", "--task", "caption", "--model", model,
        "--concurrency", str(concurrency), "--no-progress", "--max-new-tokens", "20",
    ]  # fmt: skip


def draw_pictures(folder: Path, count: int) -> None:
    """Write `count` different JPEGs of 640 x 480."""
    folder.mkdir()
    gradient = Image.radial_gradient("L").resize((640, 480)).convert("RGB")
    for number in range(count):
        shift = gradient.transform(gradient.size, Image.Transform.AFFINE, (1, 0, number, 0, 1, -number))
        shift.save(folder / f"{number:05}.jpg", "JPEG")


def rate_of(command: Sequence[str], folder: Path, count: int) -> float:
    """Pictures per second of the last three quarters; with fewer than four pictures, of all including the
    start."""
    few = count // 4
    seconds = [seconds_of(command, folder, number) if number else 0.0 for number in (few, count)]
    return (count - few) / max(seconds[1] - seconds[0], 1e-9)


def seconds_of(command: Sequence[str], folder: Path, count: int) -> float:
    """The seconds of the whole command for the first `count` pictures."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out, names = folder / "answers.jsonl", folder / "names.txt"
    out.unlink(missing_ok=True)
    names.write_text("".join(f"{name}\n" for name in sorted((folder / "in").iterdir())[:count]))
    started = time.perf_counter()
    words = [*command[:4], str(names), "--out", str(out), *command[4:]]
    subprocess.run(words, cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - started


def answer_at_once(item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
    """A caption of fifty letters, at once."""
    answer: QuestionOutcome = TaskAnswer(
        task=QUESTION.task.token,
        result=Text(text="a red circle, a blue square and the word TAXI here", score=0.9),
        image_size=ImageSize(width=640, height=480),
        finish_reason="stop",
        usage=Usage(picture_tokens=577, prompt_tokens=8, generated_tokens=20),
        timings=Timings(queue_s=0.1, encode_s=0.1, decode_s=0.1, total_s=0.3),
        checkpoint="echo",
    )
    return [answer] * len(questions)


def make_ask() -> Ask:
    """The function with which an actor answers."""
    return answer_at_once


def print_overheads(count: int, address: str) -> None:
    """Print milliseconds per batch and per picture, and bytes per picture, of one actor that
    answers at once."""
    names = [f"in/{number:08}.jpg" for number in range(count)]
    jobs = [Job(PictureItem(name, f"/data/{name}"), (QUESTION,)) for name in names]
    seconds: dict[int, float] = {}
    with cluster(address):
        for batch in (32, 4):
            run = RayRun(ActorPool(1, 1, cpus=1), batch, actor={"make_ask": make_ask})
            times = [time.perf_counter() for _ in run.lines(JobSource(jobs, batch))]
            quarter = len(times) // 4
            seconds[batch] = (times[-1] - times[quarter]) / (len(times) - quarter - 1)
            print(f"batches of {batch}: {1000 * seconds[batch]:.3f} ms a picture")
    batch_s = (seconds[4] - seconds[32]) / (1 / 4 - 1 / 32)
    print(f"a batch: {1000 * batch_s:.2f} ms; a picture: {1000 * (seconds[32] - batch_s / 32):.3f} ms")
    from ray import cloudpickle

    sent = len(cloudpickle.dumps(job_block(jobs[:32]))) / 32
    back = as_lines((job, answer_at_once(job.item, job.questions)) for job in jobs[:32]).nbytes / 32
    print(f"object store: {sent:.0f} bytes a picture there, {back:.0f} back")


if __name__ == "__main__":
    main()
