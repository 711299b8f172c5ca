"""A run's order, limits and endings; which questions are asked; and a process that is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bulk_runs import answer, echo
from waiting import PATIENCE_S, wait_until

from florence.answers.files import read_answers
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import HELD_BYTES, Job, Running, RunTally, Shard, open_jobs
from florence.bulk.store import AnsweredTasks
from florence.cli.bulk import interrupts
from florence.errors import RequestError, SettingsError
from florence.types.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
CAPTION, BOXES = PictureQuestion(TASKS["<CAPTION>"]), PictureQuestion(TASKS["<OD>"])


def items(count: int) -> list[PictureItem]:
    """Pictures with numbers as names."""
    return [PictureItem(f"{number}.png", f"{number}.png") for number in range(count)]


def jobs(count: int) -> list[Job]:
    """Jobs that ask for a caption of each of these pictures."""
    return [Job(item, (CAPTION,)) for item in items(count)]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_each_job_comes_once(ordered: bool, concurrency: int) -> None:
    """Each job has one outcome, however long each takes; with `ordered`, outcomes keep the order of
    the jobs."""
    source = random.Random(concurrency)
    waits = {f"{number}.png": source.random() / 500 for number in range(60)}

    def ask(item: PictureItem, questions: Sequence[PictureQuestion]) -> Any:
        time.sleep(waits[item.picture])  # only the order of the outcomes depends on it
        return echo(item, questions)

    with Running(jobs(60), ask, concurrency=concurrency, ordered=ordered) as running:
        came = [job.item.picture for job, _ in running]
    assert (came if ordered else sorted(came, key=lambda name: int(name[:-4]))) == list(waits)


@pytest.mark.parametrize("ordered", [True, False])
def test_few_jobs_are_taken_ahead(ordered: bool) -> None:
    """Only a few jobs are taken ahead, however many there are and however slow the first is, so memory is
    bounded."""
    taken, release = itertools.count(), threading.Event()
    most = 0

    def endless() -> Iterator[Job]:
        nonlocal most
        for job in itertools.cycle(jobs(5)):
            most = next(taken)
            yield job

    def ask(item: PictureItem, questions: Sequence[PictureQuestion]) -> Any:
        if item.picture == "0.png":
            release.wait(PATIENCE_S)
        return echo(item, questions)

    def release_when_full() -> None:
        wait_until(lambda: most >= 7)
        release.set()

    with Running(endless(), ask, concurrency=4, ordered=ordered) as running:
        came = iter(running)
        if ordered:
            threading.Thread(target=release_when_full).start()
        next(came)
        assert most <= 9 + (not ordered) * 9
        release.set()


@pytest.mark.parametrize("ordered", [True, False])
def test_few_large_pictures_are_taken_ahead(ordered: bool) -> None:
    """Jobs whose items hold their bytes are taken ahead only up to a number of bytes, and all are
    answered."""
    alive, most = 0, 0

    def large() -> Iterator[Job]:
        nonlocal alive, most
        for job in jobs(40):
            alive += 1
            most = max(most, alive)
            yield Job(replace(job.item, held=HELD_BYTES // 4), job.questions)

    came = 0
    with Running(large(), echo, concurrency=16, ordered=ordered) as running:
        for _ in running:
            alive -= 1
            came += 1
    assert came == 40
    assert most <= 4


def test_an_interrupted_run_keeps_what_was_under_way() -> None:
    """`drain` gives the outcomes of requests that had begun, and no other request begins."""
    begun: list[str] = []
    go = threading.Event()

    def ask(item: PictureItem, questions: Sequence[PictureQuestion]) -> Any:
        begun.append(item.picture)
        go.wait(PATIENCE_S)
        return echo(item, questions)

    def let_go() -> None:
        wait_until(lambda: len(begun) == 2)
        go.set()

    with Running(jobs(50), ask, concurrency=2) as running:
        threading.Thread(target=let_go).start()
        first, _ = next(iter(running))
        drained = [job.item.picture for job, _ in running.drain()]
    assert sorted([first.item.picture, *drained]) == sorted(begun)
    assert 2 <= len(begun) < 50


@pytest.mark.parametrize("deferred", [True, False], ids=["first", "second"])
def test_ctrl_c_at_any_moment_ends_a_run(deferred: bool) -> None:
    """A SIGINT at any moment ends the run; the first one loses no outcome of a request that had begun.

    A second one may lose outcomes, since it raises an exception at any point.
    """
    for last in range(200):
        begun: list[str] = []
        came: list[str] = []

        def ask(
            item: PictureItem,
            questions: Sequence[PictureQuestion],
            begun: list[str] = begun,
            last: int = last,
        ) -> Any:
            begun.append(item.picture)
            if len(begun) == 1 + last % 7:
                os.kill(os.getpid(), signal.SIGINT)
            return echo(item, questions)

        with Running(jobs(9), ask, concurrency=2) as running:
            try:
                with interrupts(running.interrupt) if deferred else nullcontext():
                    came += (job.item.picture for job, _ in running)
            except KeyboardInterrupt:
                came += (job.item.picture for job, _ in running.drain())
        assert set(came) <= set(begun)
        assert not deferred or sorted(came) == sorted(begun)


def test_there_are_no_more_threads_than_jobs() -> None:
    """There are never more threads than jobs, for any concurrency."""
    before = threading.active_count()
    with Running(jobs(3), echo, concurrency=100_000) as running:
        assert len(list(running)) == 3
        assert threading.active_count() <= before + 3


def test_an_error_that_is_no_answer_ends_the_run() -> None:
    """An error of another kind is raised where the outcomes are read, and ends all threads."""

    def ask(item: PictureItem, questions: Sequence[PictureQuestion]) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Running(jobs(9), ask, concurrency=3) as running:
        list(running)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("florence-bulk")]
    with pytest.raises(SettingsError):
        Running(jobs(1), ask, concurrency=0)


def test_answered_questions_are_not_asked_again() -> None:
    """Questions that already have answers are not asked again, and a picture that comes twice is asked about
    once."""
    answered = AnsweredTasks()
    assert answered.claim("1.png", CAPTION.key)
    assert not answered.claim("1.png", CAPTION.key)
    tally = RunTally()
    twice = [*items(3), *items(2)]
    found = list(open_jobs(twice, (CAPTION, BOXES), answered, Shard(), tally))
    asked = [(job.item.picture, len(job.questions)) for job in found]
    assert asked == [("0.png", 2), ("1.png", 1), ("2.png", 2)]
    assert (tally.answered, tally.duplicates, tally.other_shards) == (1, 2, 0)
    with pytest.raises(RequestError, match="no task given"):
        list(open_jobs(items(1), (), answered, Shard(), tally))


def test_an_id_tells_pictures_apart() -> None:
    """Two files with one id are one picture, and one file with two ids is two pictures."""
    same = [PictureItem("a", "a", id="x"), PictureItem("b", "b", id="x"), PictureItem("a", "a", id="y")]
    found = list(open_jobs(same, (CAPTION,), AnsweredTasks(), Shard(), RunTally()))
    assert [(job.item.picture, job.item.id) for job in found] == [("a", "x"), ("a", "y")]


def test_shards_divide_the_pictures() -> None:
    """Each picture belongs to exactly one shard, and shards have similar sizes."""
    shards = [Shard.parse(f"{number}/8") for number in range(1, 9)]
    parts = [
        {job.item.picture for job in open_jobs(items(4000), (CAPTION,), AnsweredTasks(), shard, RunTally())}
        for shard in shards
    ]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 4000
    assert all(400 < len(part) < 600 for part in parts)
    for wrong in ("0/8", "9/8", "3", "3/", "a/b", "-1/8", "1/0", "٣/٨"):
        with pytest.raises(RequestError, match="such as 3/8"):
            Shard.parse(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("out", ["r.jsonl", "r.parquet", "parts"])
def test_a_run_that_is_killed_again_and_again_is_completed(tmp_path: Path, out: str) -> None:
    """After runs killed by SIGKILL at any moment, a last run completes the file with each answer exactly
    once."""
    count = 100
    (tmp_path / "in").mkdir()
    for number in range(count):
        (tmp_path / "in" / f"{number:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8))
    more = ["--part-rows", "7"] if out == "parts" else []
    command = [
        sys.executable, str(ROOT / "tests" / "bulk_runs.py"), "0.004", "bulk", "in", "--task", "caption",
        "--task", "<OD>", "--out", out, "--concurrency", "3", "--no-progress", *more,
    ]  # fmt: skip
    source = random.Random(out)
    lines = tmp_path / (out if out == "r.jsonl" else f"{out}.jsonl")

    def progress() -> int:
        parts = sum(path.stat().st_size for path in tmp_path.glob("parts/*"))
        return parts + (lines.stat().st_size if lines.exists() else 0)

    for _ in range(2):
        enough = progress() + 2000
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        wait_until(lambda enough=enough, process=process: progress() > enough or process.poll() is not None)
        time.sleep(source.random() / 50)  # the kill may come at any moment
        process.send_signal(signal.SIGKILL)
        process.communicate()
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "were there before" in ended.stderr
    kept = Counter((each.picture, each.task) for each in read_answers(tmp_path / out))
    assert len(kept) == 2 * count
    assert set(kept.values()) == {1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", out]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert again.stderr == f"florence: 0 answered, {2 * count} were there before\n"


def test_ctrl_c_says_what_is_kept(tmp_path: Path) -> None:
    """Ctrl-C ends a run with status 130 and reports the answers that are kept; the same command continues."""
    (tmp_path / "in").mkdir()
    for number in range(400):
        (tmp_path / "in" / f"{number:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8))
    program = str(ROOT / "tests" / "bulk_runs.py")
    arguments = ["bulk", "in", "--task", "caption", "--out", "r.jsonl", "--concurrency", "2", "--no-progress"]
    process = subprocess.Popen(
        [sys.executable, program, "0.5", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    out = tmp_path / "r.jsonl"
    wait_until(lambda: out.exists() and out.stat().st_size > 0)
    os.kill(process.pid, signal.SIGINT)  # the whole run takes 100 seconds, so it is far from its end
    _, err = process.communicate(timeout=600)
    kept = len(out.read_text().splitlines())
    assert process.returncode == 130
    assert err == (
        f"florence: interrupted: {kept} answers are kept in r.jsonl; the same command asks for the other "
        f"{400 - kept}\n"
    )
    ended = subprocess.run(
        [sys.executable, program, "0", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stderr == f"florence: {400 - kept} answered, {kept} were there before\n"
    assert len({json.loads(line)["picture"] for line in out.read_text().splitlines()}) == 400


def test_answers_say_what_was_asked() -> None:
    """The echo used in these tests gives one answer for each question, of the task's kind."""
    asked = (CAPTION, BOXES)
    kinds = [outcome.result.kind for outcome in echo(items(1)[0], asked)]  # type: ignore[union-attr]
    assert kinds == ["text", "boxes"]
    assert answer(TASKS["<CAPTION>"], "x").result.text == "x"
