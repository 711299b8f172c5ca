"""The `florence` command against a real server with a fake model, and with the bundled checkpoint here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import ROOT, STOP_S, Server, free_port, serving_fake

from florence import __version__
from florence.cli import main
from florence.tasks import TASKS, Input

PICTURE = str(ROOT / "data" / "scene_02.png")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_fake() as started:
        started.wait_ready()
        yield started


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line's exit status, and what it prints on stdout and stderr."""

    def ran(*argv: object) -> tuple[int, str, str]:
        try:
            status = main([str(part) for part in argv])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return ran


def copies(directory: Path, count: int) -> list[str]:
    """So many files of the picture, sorted."""
    directory.mkdir()
    paths = [directory / f"{number:02}.png" for number in range(count)]
    for path in paths:
        path.write_bytes(Path(PICTURE).read_bytes())
    return [str(path) for path in paths]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_console_script_is_this_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["florence"].partition(":")
    assert getattr(import_module(module), name) is main


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"florence {__version__}\n", "")


@pytest.mark.parametrize("command", [(), ("run",), ("bulk",), ("info",), ("serve",)])
def test_the_readmes_help_is_the_programs(run: Run, command: tuple[str, ...]) -> None:
    """The README holds what the program and each of its commands print."""
    status, out, _ = run(*command, "--help")
    assert status == 0
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```\n$ {' '.join(('florence', *command))} --help\n{out}```\n" in readme


def test_help_names_every_task_with_its_input(run: Run) -> None:
    inputs = {Input.NONE: "", Input.TEXT: " TEXT", Input.REGION: " --region"}
    lines = run("run", "--help")[1].splitlines()
    assert all(f"  {task.name}{inputs[task.input]}" in lines for task in TASKS.values())


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
@pytest.mark.slow
def test_every_task_runs_and_prints_json(run: Run, server: Server, task: Any) -> None:
    """By its token; region and text as the help says."""
    given = {Input.NONE: [], Input.TEXT: ["a car"], Input.REGION: ["--region", "1,2,30,40"]}[task.input]
    status, out, err = run("run", PICTURE, task.token, *given, "--json", "--url", server.url)
    assert (status, err) == (0, "")
    assert json.loads(out)["task"] == task.token


@pytest.mark.slow
def test_answers_are_lines_for_a_person(run: Run, server: Server) -> None:
    """Text as it is; things with score, label and pixels; a region may stand in the text's place."""
    url = ("--url", server.url)
    assert run("run", PICTURE, "caption", *url) == (0, "a fake\n", "")
    assert run("run", PICTURE, "<OD>", *url, "--num-beams", 1)[1] == "0.50  fake  1.0 2.0 3.0 4.0\n"
    assert run("run", PICTURE, "ocr_with_region", *url)[1] == "fake  1.0 2.0 3.0 2.0 3.0 4.0 1.0 4.0\n"
    polygons = run("run", PICTURE, "region_to_segmentation", "1,2,30,40", *url)[1]
    assert polygons == "1.0 2.0 3.0 2.0 3.0 4.0\n"


@pytest.mark.slow
def test_draw_writes_the_picture(run: Run, server: Server, tmp_path: Path) -> None:
    out = tmp_path / "drawn.png"
    assert run("run", PICTURE, "<OD>", "--draw", out, "--url", server.url)[0] == 0
    with Image.open(out) as drawn, Image.open(PICTURE) as picture:
        assert drawn.size == picture.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["run", PICTURE, "captions"], 2, "unknown task 'captions'; the tasks are <CAPTION>"),
        (["run", PICTURE, "caption", "a text"], 2, "<CAPTION> takes no text"),
        (["run", PICTURE, "caption", "--region", "1,2,3,4"], 2, "<CAPTION> takes no region"),
        (["run", PICTURE, "region_to_ocr", "a", "--region", "1,2,3,4"], 2, "takes one of them"),
        (["run", PICTURE, "region_to_ocr", "--region", "1,2,3"], 2, "is not four numbers"),
        (["run", PICTURE, "caption", "--num-beams", "99"], 2, "num_beams must be an integer from 1 to 8"),
        (["run", "no/such.png", "caption"], 2, "'no/such.png' can't be read"),
        (["run", PICTURE, "caption", "--draw", "a.txt"], 2, "must end in .png"),
        (["run", PICTURE, "caption", "--draw", "/no/such/dir/a.png"], 1, "No such file or directory"),
        (["bulk", "no/such/*.png", "--task", "caption", "--out", "x.jsonl"], 2, "names no picture"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run: Run, server: Server, argv: list[str], status: int, words: str
) -> None:
    """On stderr, with the exit status that --help says; nothing on stdout."""
    ended, out, err = run(*argv, "--url", server.url)
    assert (ended, out) == (status, "")
    assert words in err
    assert "Traceback" not in err


def test_nobody_at_the_url(run: Run) -> None:
    for command in (("run", PICTURE, "caption"), ("info",)):
        status, _, err = run(*command, "--url", "http://127.0.0.1:9")
        assert status == 1
        assert err.startswith("florence: http://127.0.0.1:9")
    assert run("info", "--url", "localhost:8000")[0] == 2


@pytest.mark.slow
def test_info_of_a_service(run: Run, server: Server) -> None:
    status, out, _ = run("info", "--url", server.url)
    facts = json.loads(out)
    assert status == 0
    assert (facts["name"], facts["version"], facts["ready"]) == ("florence", __version__, True)


@pytest.mark.slow
def test_bulk_answers_each_picture_once_over_two_runs(run: Run, server: Server, tmp_path: Path) -> None:
    """A run that was killed in the middle of a line is completed: only what is missing is asked."""
    pictures = copies(tmp_path / "in", 6)
    out = tmp_path / "results.jsonl"
    command = ("bulk", tmp_path / "in", "--task", "<OD>", "--out", out, "--url", server.url)
    status, _, err = run(*command, "--concurrency", 3)
    assert (status, err) == (0, "florence: 6 answered\n")
    assert sorted(row["picture"] for row in rows(out)) == pictures
    assert all(row["task"] == "<OD>" and row["result"]["detections"] for row in rows(out))
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    assert run(*command)[2] == "florence: 3 answered, 3 were there before\n"
    assert sorted(row["picture"] for row in rows(out)) == pictures
    assert run(*command)[2] == "florence: 0 answered, 6 were there before\n"


@pytest.mark.slow
def test_bulk_keeps_failures_in_a_file_of_their_own(run: Run, server: Server, tmp_path: Path) -> None:
    """They do not end the run; once they are repaired, the next run answers them and the file is gone."""
    good, bad = copies(tmp_path / "in", 2)
    Path(bad).write_text("no picture")
    out, failures = tmp_path / "results.jsonl", tmp_path / "results.failures.jsonl"
    command = ("bulk", tmp_path / "in", "--task", "caption", "--out", out, "--url", server.url)
    status, _, err = run(*command)
    assert status == 3
    assert f"1 answered, 1 failed: see {failures}" in err
    assert [row["picture"] for row in rows(out)] == [good]
    (failure,) = rows(failures)
    assert failure["picture"] == bad
    assert "picture" in failure["error"]
    Path(bad).write_bytes(Path(good).read_bytes())
    assert run(*command)[0] == 0
    assert len(rows(out)) == 2
    assert not failures.exists()


@pytest.mark.slow
def test_bulk_tells_questions_apart(run: Run, server: Server, tmp_path: Path) -> None:
    """One file may hold several tasks, texts and regions; each is completed for itself."""
    copies(tmp_path / "in", 1)
    command = ("bulk", tmp_path / "in", "--out", tmp_path / "r.jsonl", "--url", server.url)
    for asked in (
        ("--task", "caption"),
        ("--task", "open_vocabulary_detection", "--text", "a käfer"),
        ("--task", "open_vocabulary_detection", "--text", "a dog"),
        ("--task", "region_to_ocr", "--region", "1,2,30,40"),
    ):
        assert run(*command, *asked)[2].startswith("florence: 1 answered")
        assert run(*command, *asked)[2] == "florence: 0 answered, 1 were there before\n"
    assert [row["text"] for row in rows(tmp_path / "r.jsonl")] == [None, "a käfer", "a dog", None]


@pytest.mark.slow
def test_bulk_takes_directories_globs_lists_and_files(
    run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, each picture once."""
    pictures = copies(tmp_path / "in", 3)
    (tmp_path / "list.txt").write_text(f"{pictures[0]}\n\n  {PICTURE}\n")
    monkeypatch.chdir(tmp_path)
    sources = (pictures[2], tmp_path / "*" / "*.png", "list.txt", "in")
    run("bulk", *sources, "--task", "caption", "--out", "r.jsonl", "--url", server.url)
    relative = [f"in/{number:02}.png" for number in range(3)]
    assert sorted(row["picture"] for row in rows(tmp_path / "r.jsonl")) == sorted(
        [*pictures, PICTURE, *relative]
    )


@pytest.mark.parametrize("content", ["a diary\n", '{"a": 1}\n', "[1]\n", "no line end"])
def test_bulk_never_writes_into_a_strange_file(run: Run, tmp_path: Path, content: str) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text(content)
    status, _, err = run("bulk", PICTURE, "--task", "caption", "--out", out, "--url", "http://127.0.0.1:9")
    assert status == 2
    assert "name another --out" in err
    assert out.read_text() == content


@pytest.mark.slow
def test_the_bundled_checkpoint_here_and_a_picture_from_stdin(tmp_path: Path) -> None:
    """Without a service: the model is loaded in the program, and gives the library's answer."""
    program = "import sys; from florence.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "FLORENCE_MODEL": "demo", "FLORENCE_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def ran(*argv: str, data: bytes = b"") -> str:
        done = subprocess.run(
            [*command, *argv], input=data, env=environment, cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    found = json.loads(ran("run", "-", "<OD>", "--json", data=Path(PICTURE).read_bytes()))
    assert found["checkpoint"].startswith("demo")
    assert found["result"]["detections"]
    assert json.loads(ran("info", "--model", "demo"))["device"] == "cpu"
    ran("bulk", PICTURE, "--task", "caption", "--out", "r.jsonl", "--num-beams", "1")
    assert rows(tmp_path / "r.jsonl")[0]["result"]["kind"] == "text"


@pytest.mark.slow
def test_serve_is_the_service_and_stops_when_told(tmp_path: Path) -> None:
    """The process becomes the server: SIGTERM to it ends the service."""
    port = free_port()
    log_path = tmp_path / "log"
    program = "import sys; from florence.cli import main; sys.exit(main())"
    environment = {
        **os.environ,
        "BENTOML_HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "true",
        "FLORENCE_GRPC_PORT": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", program, "serve", "--model", "demo", "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    server = Server(process, f"http://127.0.0.1:{port}", log_path)
    try:
        server.wait_ready()
        server.terminate()
        process.wait(STOP_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "loading demo on cpu" in server.log
