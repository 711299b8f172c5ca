"""Bulk runs on Ray: actors and parts, without a cluster."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from bulk_runs import answer, echo
from pictures import drawn, saved
from waiting import PATIENCE_S

from florence.answers.columns import read_columns
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Ask, Job, QuestionOutcome, Shard
from florence.bulk.sources import Sources
from florence.bulk.store import AnsweredTasks, Store
from florence.errors import ImageError, RequestError
from florence.ray import FlorenceActor
from florence.ray.pool import BLOCK_BYTES, ActorPool
from florence.ray.rows import as_columns, as_lines, job_block
from florence.ray.sink import PartSink
from florence.ray.source import Archives, absolute, chunks, in_archives
from florence.types.tasks import TASKS

CAPTION, BOXES = (PictureQuestion(TASKS[token]) for token in ("<CAPTION>", "<OD>"))


def failing(item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
    """Answers, or an error for each picture whose name contains "bad"."""
    return [ImageError("no picture")] * len(questions) if "bad" in item.picture else echo(item, questions)


def make_failing() -> Ask:
    """The function `failing`, as an actor makes its own."""
    return failing


def test_an_actor_answers_what_ray_reads() -> None:
    """Each picture and task of a `read_binary_files` batch becomes a row, in order, with its typed answer
    or its error."""
    actor = FlorenceActor(["caption", "<OD>"], make_ask=make_failing)
    table = actor(pandas.DataFrame({"path": ["a", "bad", "c"], "bytes": [b"1", b"2", b"3"]}))
    rows = table.to_pylist()
    assert [(row["picture"], row["task"]) for row in rows] == [
        (name, token) for name in ("a", "bad", "c") for token in ("<CAPTION>", "<OD>")
    ]
    assert [row["error"] for row in rows] == [None, None, "no picture", "no picture", None, None]
    assert [row["result"] is None for row in rows] == [False, False, True, True, False, False]
    assert rows[0]["result"]["text"] == "a"
    assert [each["label"] for each in rows[1]["result"]["detections"]] == ["tree", "car"]


def test_batches_overlap_in_an_actor() -> None:
    """While one picture of a batch is unanswered, the next batch is answered in Ray's other threads, so
    the engine has work between batches."""
    slow, others = Event(), Event()

    def ask(item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
        if item.picture == "slow":
            assert slow.wait(PATIENCE_S)
        if item.picture == "last of the next":
            others.set()
        return echo(item, questions)

    actor = FlorenceActor(["caption"], concurrency=2, make_ask=lambda: ask)
    batches = [["slow", "b"], ["c", "d"], ["e", "last of the next"]]
    with ThreadPoolExecutor(3) as ray_threads:
        calls = [
            ray_threads.submit(actor, pandas.DataFrame({"path": names, "bytes": [b""] * 2}))
            for names in batches
        ]
        assert others.wait(PATIENCE_S)
        assert not calls[0].done()
        slow.set()
        given = [[row["picture"] for row in call.result(PATIENCE_S).to_pylist()] for call in calls]
    assert given == batches


def test_lines_are_those_of_a_store(tmp_path: Path) -> None:
    """A line from a cluster equals plain bulk's, with id, text and adapter; answers have distinct keys."""
    asked = PictureQuestion(TASKS["<OPEN_VOCABULARY_DETECTION>"], "café", None, {"adapter": "x"})
    jobs = [Job(PictureItem("é", "", id="1"), (CAPTION, asked)), Job(PictureItem("b\udce9", ""), (CAPTION,))]
    outcomes = [(job, [answer(each.task, job.item.picture[:1]) for each in job.questions]) for job in jobs]
    store = Store(tmp_path / "r.jsonl")
    with store:
        for job, answers in outcomes:
            for question, each in zip(job.questions, answers, strict=True):
                store.add(job.item, question, each)
    rows = as_lines(outcomes).to_pylist()
    assert "".join(row["line"] for row in rows) == store.out.read_text(encoding="utf-8")
    assert len({row["key"] for row in rows}) == 3
    (failed,) = as_lines([(jobs[1], [ImageError("no")])]).to_pylist()
    assert (failed["line"], json.loads(failed["failure"])["picture"]) == (None, "b\udce9")


@pytest.mark.parametrize(
    ("text", "pool"), [("4", ActorPool(4, 4)), ("2..8", ActorPool(2, 8)), ("1..1", ActorPool(1, 1))]
)
def test_actors_are_a_number_or_a_range(text: str, pool: ActorPool) -> None:
    """The number of actors may be a number or a range."""
    assert ActorPool.parse(text) == pool
    assert (pool.strategy().min_size, pool.strategy().max_size) == (pool.least, pool.most)


@pytest.mark.parametrize("text", ["", "0", "8..2", "2..", "2-8", "-1", "1...2", "²", "two"])
def test_other_numbers_of_actors_are_refused(text: str) -> None:
    """Any other text is refused with an example."""
    with pytest.raises(RequestError, match=r"such as 2\.\.8"):
        ActorPool.parse(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--actors", "2"], "give --ray"),
        (["--gpus-per-actor", "1"], "give --ray"),
        (["--ray", "auto", "--url", "http://127.0.0.1:9"], "leave one of them out"),
        (["--ray", "auto", "--actors", "8..2"], "a range"),
        (["--ray", "in"], "name each SOURCE before"),
    ],
)
def test_what_can_not_be_together_is_refused(
    words: list[str], message: str, florence: Any, tmp_path: Path
) -> None:
    """Conflicting options are refused before a cluster is contacted, with what to change."""
    picture = tmp_path / "a.png"
    picture.write_bytes(saved(drawn(9, 9), "PNG"))
    status, _, err = florence("bulk", picture, "--task", "caption", "--out", tmp_path / "r.jsonl", *words)
    assert status == 2
    assert message in err


def archive(path: Path, names: Sequence[str]) -> bytes:
    """Write a tar archive of pictures with these names, and return its bytes."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            content = saved(drawn(9, 9), "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def test_archives_are_read_where_the_tasks_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver lists only the archives' names. A task reads the pictures under plain bulk's names from
    any directory, without those already answered; a damaged archive adds one job, which fails."""
    monkeypatch.chdir(tmp_path)
    names = [f"{number:02}.png" for number in range(5)]
    whole = archive(tmp_path / "a.tar", names)
    (tmp_path / "torn.tar").write_bytes(whole[: 2 * 1024 + 512 + 50])  # in the third picture
    plain = [item.picture for item in Sources(["a.tar"]).items()]
    sources = Sources(["*.tar", "a.tar"], archives=[])
    assert list(sources.items()) == []
    assert sources.archives == ["a.tar", "torn.tar", "a.tar"]
    answered = AnsweredTasks({CAPTION.key: {plain[1]}})
    places = {name: absolute(name) for name in sources.archives}
    sent = Archives(places, in_archives(sources), (CAPTION,), answered, Shard())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = list(sent.jobs("a.tar"))
    assert [job.item.picture for job in found] == [plain[0], *plain[2:]]
    assert found[0].item.read() == saved(drawn(9, 9), "PNG")
    *before, last = sent.jobs("torn.tar")
    assert len(before) == 2
    with pytest.raises(ImageError, match=r"torn\.tar is not a tar archive, or is cut short"):
        last.item.read()


def test_large_pictures_of_archives_come_in_small_blocks() -> None:
    """A read task holds at most a block's bytes and one picture; each picture comes once, in order."""
    jobs = [
        Job(PictureItem(str(n), "", held=BLOCK_BYTES // 3 if n < 10 else 0), (CAPTION,)) for n in range(20)
    ]
    found = list(chunks(jobs, 8))
    assert [job for chunk in found for job in chunk] == jobs
    assert [len(chunk) for chunk in found] == [4, 4, 8, 4]


def write(sink: PartSink, number: int, table: Any) -> Any:
    """Write the rows as this task of Ray."""
    return sink.write([table], SimpleNamespace(task_idx=number))


def test_parts_are_those_of_plain_bulk(tmp_path: Path) -> None:
    """Parts have the rows of a plain store and are numbered after existing ones; a repeated write leaves
    its answers once, failures are returned, and no other file stays."""
    out = tmp_path / "parts"
    jobs = [Job(PictureItem(name, ""), (CAPTION, BOXES)) for name in ("a", "bad", "c")]
    outcomes = [(job, failing(job.item, job.questions)) for job in jobs]
    with Store(out, part_rows=10) as store:
        store.add(PictureItem("before", ""), CAPTION, answer(CAPTION.task, "x"))
    sink = PartSink(out, 10)
    sink.on_write_start()
    first = write(sink, 0, as_columns(outcomes[:2]))
    again = write(sink, 0, as_columns(outcomes[:2]))
    assert first == again
    second = write(sink, 1, as_columns(outcomes[2:]))
    sink.on_write_complete(SimpleNamespace(write_returns=[again, second]))
    assert sink.result.answers == 4
    assert [json.loads(line)["error"] for line in sink.result.failures] == ["no picture"] * 2
    assert [path.name for path in sorted(out.iterdir())] == [f"part-{n:06}.parquet" for n in range(3)]
    written = [(row["picture"], row["task"]) for row in read_columns(out)]
    assert written == [
        ("before", "<CAPTION>"),
        *[(name, q.task.token) for name in "ac" for q in (CAPTION, BOXES)],
    ]
    assert ("c", BOXES.key) in [(name, key) for key, names in store.answered().items() for name in names]


def test_parts_of_a_killed_run_come_too_late(tmp_path: Path) -> None:
    """When another run has begun, late tasks of the earlier run write nothing; their pictures are asked
    again."""
    before = PartSink(tmp_path / "parts", 10)
    before.on_write_start()
    outcomes = [(job, echo(job.item, job.questions)) for job in [Job(PictureItem("a", ""), (CAPTION,))]]
    after = PartSink(tmp_path / "parts", 10)
    after.on_write_start()
    with pytest.raises(RequestError, match="another run has begun"):
        write(before, 0, as_columns(outcomes))
    assert write(after, 0, as_columns(outcomes)).answers == 1
    assert [row["picture"] for row in read_columns(tmp_path / "parts")] == ["a"]


def test_parts_on_a_node_with_another_directory_are_refused(tmp_path: Path) -> None:
    """A node without the shared directory refuses to write, so no answer ends on a disk that no run reads."""
    sink = PartSink(tmp_path / "parts", 10)
    with pytest.raises(RequestError, match="storage that they share"):
        write(sink, 0, as_columns([]))


def test_jobs_survive_the_way_to_an_actor(tmp_path: Path) -> None:
    """Ray's serializer gives back equal jobs, with options and pages."""
    from ray import cloudpickle

    asked = PictureQuestion(TASKS["<OD>"], options={"num_beams": 2})
    item = PictureItem("a.pdf", str(tmp_path / "a.pdf"), id="1").at(page=2)
    jobs = [Job(item, (CAPTION, asked)), Job(PictureItem("b", "b", questions=(asked,)), (asked,))]
    back = list(cloudpickle.loads(cloudpickle.dumps(job_block(jobs)))["job"])
    assert back == jobs
