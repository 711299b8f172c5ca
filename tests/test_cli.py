"""The `florence` command with a real server with a fake model, and with the bundled checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import ROOT, STOP_S, Server, free_port

from florence import __version__
from florence.cli import main
from florence.cli.asking import find_task
from florence.model.kernels.cpu.kept import cache_folders
from florence.types.tasks import TASKS, Input, Task

PICTURE = str(ROOT / "data" / "scene_02.png")
Run = Callable[..., tuple[int, str, str]]


def test_the_console_script_is_this_program() -> None:
    """The console script calls this program."""
    project = tomllib.loads((ROOT / "deploy/client/pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["florence"].partition(":")
    assert getattr(import_module(module), name) is main


def test_version(florence: Run) -> None:
    """`--version` prints the version."""
    assert florence("--version") == (0, f"florence {__version__}\n", "")


def test_help_names_every_task_with_its_input(florence: Run) -> None:
    """The help of `run` lists every task with its input."""
    inputs = {Input.NONE: "", Input.TEXT: " TEXT", Input.REGION: " --region"}
    lines = florence("run", "--help")[1].splitlines()
    assert all(f"  {task.name}{inputs[task.input]}" in lines for task in TASKS.values())


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_spelling_of_a_task_is_taken(task: Task) -> None:
    """By `find_task`, which reads the tasks of `run`, `bulk`, its lists and manifests, and `evaluate`."""
    for name in (task.token, task.token.strip("<>"), task.token.lower(), task.name, task.name.upper()):
        assert find_task(argparse.Namespace(task=name, prompt=None, answer_as=None)) is task


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
@pytest.mark.slow
def test_every_task_runs_and_prints_json(florence: Run, fake_server: Server, task: Any) -> None:
    """Every task runs by its token, with the text or region that the help names, and prints JSON."""
    given = {Input.NONE: [], Input.TEXT: ["a car"], Input.REGION: ["--region", "1,2,30,40"]}[task.input]
    status, out, err = florence("run", PICTURE, task.token, *given, "--json", "--url", fake_server.url)
    assert (status, err) == (0, "")
    assert json.loads(out)["task"] == task.token


@pytest.mark.slow
def test_answers_are_printed_as_lines(florence: Run, fake_server: Server) -> None:
    """Texts are printed as they are, and items with score, label and pixels; a region can be given as the
    text."""
    url = ("--url", fake_server.url)
    assert florence("run", PICTURE, "caption", *url) == (0, "a fake\n", "")
    assert florence("run", PICTURE, "<OD>", *url, "--num-beams", 1)[1] == "0.50  fake  1.0 2.0 3.0 4.0\n"
    assert florence("run", PICTURE, "ocr_with_region", *url)[1] == "fake  1.0 2.0 3.0 2.0 3.0 4.0 1.0 4.0\n"
    polygons = florence("run", PICTURE, "region_to_segmentation", "1,2,30,40", *url)[1]
    assert polygons == "1.0 2.0 3.0 2.0 3.0 4.0\n"


@pytest.mark.slow
def test_draw_writes_the_picture(florence: Run, fake_server: Server, tmp_path: Path) -> None:
    """`--draw` writes the picture in its size."""
    out = tmp_path / "drawn.png"
    assert florence("run", PICTURE, "<OD>", "--draw", out, "--url", fake_server.url)[0] == 0
    with Image.open(out) as drawn, Image.open(PICTURE) as picture:
        assert drawn.size == picture.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (
            ["run", PICTURE, "captions"],
            2,
            "unknown task 'captions'; did you mean <CAPTION> or caption?",
        ),
        (["run", PICTURE, "caption", "a text"], 2, "<CAPTION> takes no text"),
        (["run", PICTURE, "caption", "--region", "1,2,3,4"], 2, "<CAPTION> takes no region"),
        (["run", PICTURE, "region_to_ocr", "a", "--region", "1,2,3,4"], 2, "takes one of them"),
        (["run", PICTURE, "region_to_ocr", "--region", "1,2,3"], 2, "is not four numbers"),
        (["run", PICTURE, "caption", "--num-beams", "99"], 2, "num_beams must be an integer from 1 to 8"),
        (["run", "no/such.png", "caption"], 2, "'no/such.png' can't be read"),
        (["run", PICTURE, "caption", "--draw", "a.txt"], 2, "must end in .png"),
        (["run", PICTURE, "caption", "--draw", "/no/such/dir/a.png"], 1, "No such file or directory"),
        (["bulk", "a**b", "--task", "caption", "--out", "x.jsonl"], 2, "is not a glob"),
        (
            ["bulk", PICTURE, "--task", "caption", "--out", "x", "--concurrency", "x"],
            2,
            "whole number from 1",
        ),
        (["bulk", "no/such/*.png", "--task", "caption", "--out", "x.jsonl"], 2, "names no picture"),
    ],
)
def test_mistakes_are_told_in_one_line(
    florence: Run, fake_server: Server, argv: list[str], status: int, words: str
) -> None:
    """A mistake is one line on stderr, with the exit status of the help and nothing on stdout."""
    ended, out, err = florence(*argv, "--url", fake_server.url)
    assert (ended, out) == (status, "")
    assert words in err
    assert "Traceback" not in err


def test_nothing_listens_at_the_url(florence: Run) -> None:
    """An unreachable URL is an error that names it, and a URL without a scheme is a wrong argument."""
    for command in (("run", PICTURE, "caption"), ("info",)):
        status, _, err = florence(*command, "--url", "http://127.0.0.1:9")
        assert status == 1
        assert err.startswith("florence: http://127.0.0.1:9")
    assert florence("info", "--url", "localhost:8000")[0] == 2


@pytest.mark.slow
def test_info_of_a_service(florence: Run, fake_server: Server) -> None:
    """`info` prints a service's URL, readiness, version, checkpoint and device."""
    status, out, _ = florence("info", "--url", fake_server.url)
    facts = json.loads(out)
    assert status == 0
    assert (facts["url"], facts["version"], facts["ready"]) == (fake_server.url, __version__, True)
    assert (facts["checkpoint"], facts["device"], facts["dtype"]) == ("fake", "cpu", "float32")


@pytest.mark.slow
def test_the_bundled_checkpoint_here_and_a_picture_from_stdin(
    florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a service the command loads the model itself, reads a picture from stdin and prints
    its answer."""
    monkeypatch.setenv("FLORENCE_MODEL", "demo")
    monkeypatch.setenv("FLORENCE_THREADS", "1")
    program = "import sys; from florence.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "-", "<OD>", "--json"],
        input=Path(PICTURE).read_bytes(), env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["checkpoint"].startswith("demo")
    assert found["result"]["detections"]
    out = tmp_path / "r.jsonl"
    assert florence("bulk", PICTURE, "--task", "caption", "--out", out, "--num-beams", "1")[0] == 0
    assert json.loads(out.read_text())["result"]["kind"] == "text"


def test_without_the_server_package_it_is_said_what_is_missing(
    florence: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With only the client installed, a command that needs the server names the missing package, without a
    traceback."""
    for missing in ("florence.settings", "florence.runtime.florence2"):
        monkeypatch.setitem(sys.modules, missing, None)
    for command in (("serve",), ("info", "--model", "demo"), ("run", PICTURE, "caption"), ("verify",)):
        status, _, err = florence(*command)
        assert status == 1
        assert err.startswith("florence: this needs the package florence2-server")


def test_a_model_here_keeps_the_settings_limits(florence: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model loaded by the command keeps the limits on pictures and uses the first device of a list."""
    monkeypatch.setenv("FLORENCE_MAX_IMAGE_PIXELS", "1000")
    monkeypatch.setenv("FLORENCE_DEVICE", "cpu,cpu")
    status, _, err = florence("run", PICTURE, "caption", "--model", "demo")
    assert status == 2
    assert "up to 1000 are allowed" in err


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_model_here_keeps_the_settings_batches(
    florence: Run, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """A model loaded by the command keeps the batch settings, except the limit on the wait, which could
    refuse the caller's own pictures."""
    for name, value in (("BATCH_SIZE", "3"), ("ENCODE_BATCH", "2"), ("QUEUE", "7"), ("LATENCY_MS", "1")):
        monkeypatch.setenv(f"FLORENCE_MAX_{name}", value)
    monkeypatch.setenv("FLORENCE_DEVICE", device)
    status, out, _ = florence("info", "--model", "demo")
    assert status == 0
    limits = json.loads(out)["limits"]
    names = ("max_batch_size", "max_encode_batch", "max_queue", "max_latency_ms")
    assert [limits[name] for name in names] == [3, 2, 7, None]


@pytest.mark.slow
def test_serve_is_the_service_and_stops_when_told(tmp_path: Path) -> None:
    """`serve` becomes the server process: SIGTERM ends the service. A checkpoint's path may be relative."""
    port = free_port()
    log_path = tmp_path / "log"
    program = "import sys; from florence.cli import main; sys.exit(main())"
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "BENTOML_HOME": "",
        "FLORENCE_GRPC_PORT": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    (tmp_path / "mine").symlink_to(ROOT / "florence" / "demo" / "checkpoint")
    (tmp_path / "florence").mkdir()
    (tmp_path / "florence" / "kernels").symlink_to(next(cache_folders()))  # saves a compilation
    command = [sys.executable, "-c", program, "serve", "--model", "./mine", "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    server = Server(process, f"http://127.0.0.1:{port}", log_path, grpc_port=0)
    try:
        server.wait_ready()
        server.terminate()
        process.wait(STOP_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "loading ./mine on cpu" in server.log
    assert (tmp_path / "florence" / f"bentoml-{port}" / "prometheus_multiproc_dir").is_dir()
