"""`florence bulk` with a real server with a fake model: the content of its files, and how a run is
completed."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT, Server

from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.types.answer import TaskAnswer
from florence.types.results import Text

PICTURE = str(ROOT / "data" / "scene_02.png")
Run = Callable[..., tuple[int, str, str]]


def copies(directory: Path, count: int) -> list[str]:
    """Write `count` copies of the picture and return their sorted paths."""
    directory.mkdir()
    paths = [directory / f"{number:02}.png" for number in range(count)]
    for path in paths:
        path.write_bytes(Path(PICTURE).read_bytes())
    return [str(path) for path in paths]


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_bulk_answers_each_picture_once_over_two_runs(
    florence: Run, fake_server: Server, tmp_path: Path
) -> None:
    """A second run completes a run that was cut in the middle of a line, and sends only the missing
    pictures."""
    pictures = copies(tmp_path / "in", 6)
    out = tmp_path / "results.jsonl"
    command = ("bulk", tmp_path / "in", "--task", "<OD>", "--out", out, "--url", fake_server.url)
    status, _, err = florence(*command, "--concurrency", 3)
    assert (status, err) == (0, "florence: 6 answered\n")
    assert sorted(row["picture"] for row in rows(out)) == pictures
    assert all(row["task"] == "<OD>" and row["result"]["detections"] for row in rows(out))
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    assert florence(*command)[2] == "florence: 3 answered, 3 were there before\n"
    assert sorted(row["picture"] for row in rows(out)) == pictures
    assert florence(*command)[2] == "florence: 0 answered, 6 were there before\n"


@pytest.mark.slow
def test_bulk_keeps_failures_in_a_file_of_their_own(
    florence: Run, fake_server: Server, tmp_path: Path
) -> None:
    """Failures are written to their own file and do not end the run; a later run answers repaired pictures
    and removes the file."""
    good, bad = copies(tmp_path / "in", 2)
    Path(bad).write_text("no picture")
    out, failures = tmp_path / "results.jsonl", tmp_path / "results.failures.jsonl"
    command = ("bulk", tmp_path / "in", "--task", "caption", "--out", out, "--url", fake_server.url)
    status, _, err = florence(*command)
    assert status == 3
    assert f"1 answered, 1 failed: see {failures}" in err
    assert [row["picture"] for row in rows(out)] == [good]
    (failure,) = rows(failures)
    assert failure["picture"] == bad
    assert "picture" in failure["error"]
    Path(bad).write_bytes(Path(good).read_bytes())
    assert florence(*command)[0] == 0
    assert len(rows(out)) == 2
    assert not failures.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_answers_are_never_overwritten_by_failures(
    florence: Run, fake_server: Server, tmp_path: Path, name: str
) -> None:
    """One file for answers and failures is refused, under any of its names, and stays unchanged."""
    copies(tmp_path / "in", 2)
    out = tmp_path / name
    command = ("bulk", tmp_path / "in", "--task", "caption", "--out", out, "--url", fake_server.url)
    assert florence(*command)[0] == 0
    before = out.read_bytes()
    for failures in (out, tmp_path / "in" / ".." / name, *([f"{out}.jsonl"] if "parquet" in name else [])):
        status, _, err = florence(*command, "--failures", failures)
        assert status == 2
        assert "name another --failures" in err
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "words"), [("no/such/r.jsonl", "there is no directory"), ("", "is a directory")]
)
def test_a_file_that_cant_be_written_is_an_error_before_any_request(
    florence: Run, tmp_path: Path, name: str, words: str
) -> None:
    """A file that can't be written is an error before any request."""
    for option in ("--out", "--failures"):
        files = {"--out": tmp_path / "r.jsonl", "--failures": tmp_path / "f.jsonl", option: tmp_path / name}
        pairs = [part for pair in files.items() for part in pair]
        status, _, err = florence("bulk", PICTURE, "--task", "caption", *pairs, "--url", "http://127.0.0.1:9")
        assert status == 2
        assert words in err


def test_a_device_is_no_file_for_answers(florence: Run) -> None:
    """A device is refused as the file of answers: a second run would read it, and /dev/full has no end."""
    status, _, err = florence(
        "bulk", PICTURE, "--task", "caption", "--out", "/dev/full", "--url", "http://127.0.0.1:9"
    )
    assert (status, "must be a regular file" in err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status", "answered"), [("r.jsonl", 0, 2), ("r.parquet", 3, 1)])
def test_a_file_whose_name_is_no_text_does_not_end_the_run(
    florence: Run, fake_server: Server, tmp_path: Path, name: str, status: int, answered: int
) -> None:
    """A file name that is not text is escaped in JSON lines and recognised again; for Parquet it is a failure
    of that picture."""
    (good,) = copies(tmp_path / "in", 1)
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.png"))
    try:
        odd.write_bytes(Path(good).read_bytes())
    except OSError:
        pytest.skip("this file system has only names that are text")
    command = ("bulk", tmp_path / "in", "--task", "caption", "--out", tmp_path / name)
    ended, _, err = florence(*command, "--url", fake_server.url)
    assert ended == status
    assert f"florence: {answered} answered" in err
    if status == 0:
        assert {row["picture"] for row in rows(tmp_path / name)} == {good, str(odd)}
        assert "0 answered, 2 were there before" in florence(*command, "--url", fake_server.url)[2]
    else:
        (failure,) = rows(tmp_path / "r.failures.jsonl")
        assert failure["picture"] == str(odd)
        assert "not UTF-8" in failure["error"]


@pytest.mark.slow
def test_a_file_may_hold_several_tasks(florence: Run, fake_server: Server, tmp_path: Path) -> None:
    """One file may hold answers of several tasks, texts and regions; this is reported, and each is completed
    by itself."""
    copies(tmp_path / "in", 1)
    command = ("bulk", tmp_path / "in", "--out", tmp_path / "r.jsonl", "--url", fake_server.url)
    for asked in (
        ("--task", "caption"),
        ("--task", "open_vocabulary_detection", "--text", "a käfer"),
        ("--task", "open_vocabulary_detection", "--text", "a dog"),
        ("--task", "region_to_ocr", "--region", "1,2,30,40"),
    ):
        assert florence(*command, *asked)[2].splitlines()[-1].startswith("florence: 1 answered")
        *told, last = florence(*command, *asked)[2].splitlines()
        assert last == "florence: 0 answered, 1 were there before"
    assert told == [
        f"florence: {tmp_path / 'r.jsonl'} also holds 3 other answers, of <CAPTION>, "
        "<OPEN_VOCABULARY_DETECTION>; name another --out to keep them apart"
    ]
    assert [row["text"] for row in rows(tmp_path / "r.jsonl")] == [None, "a käfer", "a dog", None]


def test_an_interrupted_run_says_what_is_kept(
    florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run reports its file and the number of answers in it, and those answers are there."""
    pictures = copies(tmp_path / "in", 5)

    def ask(item: PictureItem, questions: Sequence[PictureQuestion]) -> list[TaskAnswer[Text]]:
        if item.picture == pictures[3]:
            raise KeyboardInterrupt
        return [TaskAnswer[Text].model_validate(TaskAnswer[Text].model_json_schema()["examples"][0])]

    monkeypatch.setattr("florence.cli.bulk.open_asker", lambda *_: nullcontext(ask))
    out = tmp_path / "r.jsonl"
    status, _, err = florence("bulk", tmp_path / "in", "--task", "caption", "--out", out, "--concurrency", 1)
    assert status == 130
    assert (
        err == f"florence: interrupted: 3 answers are kept in {out}; the same command asks for the other 2\n"
    )
    assert [row["picture"] for row in rows(out)] == pictures[:3]


def test_a_full_disk_ends_a_run_that_can_be_completed(
    florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, bulk reports the error and what is kept; the same command then completes the run."""
    copies(tmp_path / "in", 5)
    example = TaskAnswer[Text].model_validate(TaskAnswer[Text].model_json_schema()["examples"][0])
    monkeypatch.setattr("florence.cli.bulk.open_asker", lambda *_: nullcontext(lambda *_: [example]))
    out = tmp_path / "r.jsonl"
    command = ("bulk", tmp_path / "in", "--task", "caption", "--out", out, "--concurrency", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the size of two and a half lines
    try:
        status, _, err = florence(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    whole = out.read_bytes().count(b"\n")
    assert 0 < whole < 5
    kept = f"{whole} answers are kept in {out}; the same command asks for the other {5 - whole}"
    assert (status, err) == (1, f"florence: File too large: {kept}\n")
    assert florence(*command)[2] == f"florence: {5 - whole} answered, {whole} were there before\n"
    assert len(rows(out)) == 5


@pytest.mark.slow
def test_bulk_takes_directories_globs_lists_and_files(
    florence: Run, fake_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, globs, lists with comments and directories can be combined; each picture is asked about once."""
    pictures = copies(tmp_path / "in", 3)
    (tmp_path / "list.txt").write_text(f"# some pictures\n{pictures[0]}\n\n  {PICTURE}\n")
    monkeypatch.chdir(tmp_path)
    sources = (pictures[2], tmp_path / "*" / "*.png", "list.txt", "in")
    florence("bulk", *sources, "--task", "caption", "--out", "r.jsonl", "--url", fake_server.url)
    relative = [f"in/{number:02}.png" for number in range(3)]
    assert sorted(row["picture"] for row in rows(tmp_path / "r.jsonl")) == sorted(
        [*pictures, PICTURE, *relative]
    )


@pytest.mark.parametrize(
    "content", ["a diary\n", '{"a": 1}\n', "[1]\n", "no line end", 100_000 * "[" + "\n"], ids=range(5)
)
def test_bulk_never_writes_into_a_strange_file(florence: Run, tmp_path: Path, content: str) -> None:
    """A file that `florence bulk` has not written is refused and stays unchanged."""
    out = tmp_path / "mine.jsonl"
    out.write_text(content)
    status, _, err = florence(
        "bulk", PICTURE, "--task", "caption", "--out", out, "--url", "http://127.0.0.1:9"
    )
    assert status == 2
    assert "name another --out" in err
    assert out.read_text() == content


def pruned(value: Any) -> Any:
    """The value without nulls: a column has each field in every row, a line only where it applies."""
    if isinstance(value, dict):
        return {name: pruned(item) for name, item in value.items() if item is not None}
    return [pruned(item) for item in value] if isinstance(value, list) else value


TASKS_OF_EVERY_KIND = (
    ("--task", "caption"),
    ("--task", "<OD>"),
    ("--task", "ocr_with_region"),
    ("--task", "region_to_segmentation", "--region", "1,2,30,40"),
    ("--task", "open_vocabulary_detection", "--text", "a käfer"),
)


@pytest.mark.slow
def test_parquet_holds_what_the_lines_hold(florence: Run, fake_server: Server, tmp_path: Path) -> None:
    """A Parquet file has the same fields as the JSON lines for every kind of answer, and no other file is
    left."""
    import pyarrow.parquet

    lines, packed = tmp_path / "r.jsonl", tmp_path / "r.parquet"
    for asked in TASKS_OF_EVERY_KIND:
        for out in (lines, packed):
            assert florence("bulk", PICTURE, "--out", out, "--url", fake_server.url, *asked)[0] == 0
    table = pyarrow.parquet.read_table(packed)
    assert pruned(table.to_pylist()) == pruned(rows(lines))
    assert {path.name for path in tmp_path.iterdir()} == {"r.jsonl", "r.parquet"}


@pytest.mark.slow
def test_parquet_is_completed_over_runs(florence: Run, fake_server: Server, tmp_path: Path) -> None:
    """Answers in a Parquet file, and in the lines that a killed run left beside it, are not asked for again
    or stored twice."""
    import pyarrow.parquet

    pictures = copies(tmp_path / "in", 5)
    out, beside = tmp_path / "r.parquet", tmp_path / "r.parquet.jsonl"
    command = ("bulk", "--task", "caption", "--out", out, "--url", fake_server.url)
    florence(*command, *pictures[:1])
    lines = tmp_path / "lines.jsonl"
    florence("bulk", *pictures[:3], "--task", "caption", "--out", lines, "--url", fake_server.url)
    beside.write_bytes(lines.read_bytes() + b'{"picture": "half a li')
    status, _, err = florence(*command, *pictures)
    assert (status, err) == (0, "florence: 2 answered, 3 were there before\n")
    packed = pyarrow.parquet.read_table(out, columns=["picture"]).to_pydict()["picture"]
    assert sorted(packed) == pictures
    assert not beside.exists()
    assert florence(*command, *pictures)[2] == "florence: 0 answered, 5 were there before\n"


@pytest.mark.slow
def test_parquet_keeps_failures_in_lines(florence: Run, fake_server: Server, tmp_path: Path) -> None:
    """Failures of a Parquet run are written as JSON lines."""
    _, bad = copies(tmp_path / "in", 2)
    Path(bad).write_text("no picture")
    out = tmp_path / "r.parquet"
    command = ("bulk", tmp_path / "in", "--task", "caption", "--out", out, "--url", fake_server.url)
    assert florence(*command)[0] == 3
    assert [row["picture"] for row in rows(tmp_path / "r.failures.jsonl")] == [bad]


def test_parquet_is_never_written_into_a_strange_file(florence: Run, tmp_path: Path) -> None:
    """A file that is not Parquet, or has other columns, is refused and stays unchanged."""
    import pyarrow
    import pyarrow.parquet

    out = tmp_path / "mine.parquet"
    command = ("bulk", PICTURE, "--task", "caption", "--out", out, "--url", "http://127.0.0.1:9")
    pyarrow.parquet.write_table(pyarrow.table({"picture": ["a"], "task": ["b"]}), out)
    for content in (b"a diary", out.read_bytes()):
        out.write_bytes(content)
        status, _, err = florence(*command)
        assert status == 2
        assert "name another --out" in err
        assert out.read_bytes() == content


def test_without_pyarrow_its_extra_is_named(
    florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pyarrow the command names the extra before any request."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, err = florence("bulk", PICTURE, "--task", "caption", "--out", tmp_path / "r.parquet")
    assert status == 1
    assert "pip install pyarrow" in err
    assert 'pip install ".[parquet]"' in err
    assert list(tmp_path.iterdir()) == []
