"""locustfile.py in locust's own process: right answers pass, wrong ones fail, wrong options are reported.

Locust is never imported here: it replaces sockets and threads of the process that imports it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT, Server

from florence.types.tasks import TASKS

pytestmark = pytest.mark.slow


RUN_TIMES_S = (1, 4, 16, 64, 128)
"""Durations of a run: the next one is tried if the machine was too busy for the last."""


def locust(url: str, *argv: str, asked: int = 1, words: str = "") -> subprocess.CompletedProcess[str]:
    """A headless run with at least `asked` rows of statistics, which are JSON on its stdout, and with these
    words on its stderr. The run whose time is longest may have less."""
    command = [sys.executable, "-m", "locust", "--headless", "--json", "--host", url]
    for seconds in RUN_TIMES_S:
        load = ["--users", "6", "--spawn-rate", "100", "--run-time", f"{seconds}s", *argv]
        ran = subprocess.run([*command, *load], cwd=ROOT, capture_output=True, text=True, check=False)
        if not ran.stdout.strip():  # it refused to start
            break
        if len(table(ran)) >= asked and words in plain(ran.stderr):
            break
    return ran


def plain(text: str) -> str:
    """The text with one kind of quotes."""
    return text.replace("'", '"')


def table(ran: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Locust's rows by name."""
    return {row["name"]: row for row in json.loads(ran.stdout)}


def names(*doors: str) -> set[str]:
    """The names of all statistics that start with one of these."""
    every = {f"v2 JSON    {token}" for token in TASKS} | {f"v2 binary  {token}" for token in TASKS}
    every |= {f"typed      /{task.name}" for task in TASKS.values()}
    return {name for name in every if name.startswith(doors)}


def test_every_door_and_task_is_asked_and_right(fake_server: Server) -> None:
    """Three kinds of users send all tasks without a failure; a row's name has interface and task."""
    ran = locust(fake_server.url, asked=31)  # more than two doors have tasks
    assert ran.returncode == 0, ran.stderr
    rows = table(ran)
    assert set(rows) <= names("v2 JSON", "v2 binary", "typed")
    assert {name.split()[1 if name.startswith("v2") else 0] for name in rows} == {"JSON", "binary", "typed"}
    assert not any(row["num_failures"] for row in rows.values())


def test_users_tasks_and_pictures_are_chosen(fake_server: Server, tmp_path: Path) -> None:
    """Only the named users and weighted tasks are sent, with pictures of a directory, changed each time."""
    (tmp_path / "one.png").write_bytes((ROOT / "data" / "scene_02.png").read_bytes())
    chosen = ("--tasks", "caption=3, <OD>, ocr=0", "--pictures", str(tmp_path), "--fresh")
    ran = locust(fake_server.url, "V2BinaryUser", *chosen, asked=2)
    assert ran.returncode == 0, ran.stderr
    assert set(table(ran)) == {"v2 binary  <CAPTION>", "v2 binary  <OD>"}


def test_weights_are_read() -> None:
    """Weights go by name or token and are 1 by default; an empty text is all tasks."""
    program = (
        "from locustfile import read_weights\n"
        "for text in ('caption=2.5, <OD>', ''):\n"
        "    print({task.name: weight for task, weight in read_weights(text).items()})"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    lines = [{"caption": 2.5, "object_detection": 1.0}, {task.name: 1.0 for task in TASKS.values()}]
    assert ran.stdout.decode().splitlines() == [str(line) for line in lines]


def test_locust_is_all_that_it_needs() -> None:
    """The file needs locust and this repository, but none of the service's packages."""
    program = (
        "import sys\n"
        "for name in ('numpy', 'PIL', 'pydantic', 'torch', 'tritonclient', 'httpx', 'bentoml'):\n"
        "    sys.modules[name] = None\n"
        "import locustfile"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that gives this answer to each request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def v2_answer(text: str) -> bytes:
    """An answer to the request with id 1; the other requests have others."""
    output = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    return json.dumps({"id": "1", "outputs": [output]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"{}", "no v2 answer"),
        (200, b"[1]", "no v2 answer"),
        (200, v2_answer('{"<OD>": {"bboxes": [], "labels": []}}'), "the answer of request 1, not of"),
        (503, b'{"error": "256 requests are waiting"}', "503: {'error': '256 requests are waiting'}"),
    ],
)
def test_a_wrong_answer_is_a_failure(status: int, body: bytes, words: str) -> None:
    """A wrong answer is a failure with its reason, and locust ends with status 1."""
    with answering(status, body) as url:
        ran = locust(url, "V2JsonUser", "V2BinaryUser", "--tasks", "<OD>", words=plain(words))
    assert ran.returncode == 1
    rows = table(ran)
    right = 1 if b'"id"' in body else 0  # request 1 got its own answer
    assert sum(row["num_requests"] - row["num_failures"] for row in rows.values()) <= right
    assert plain(words) in plain(ran.stderr)


def test_a_typed_answer_of_another_kind_is_a_failure() -> None:
    """An answer without the typed fields is a failure."""
    with answering(200, v2_answer("{}")) as url:
        ran = locust(url, "TypedUser", "--tasks", "caption", words="no typed answer")
    assert ran.returncode == 1
    assert "no typed answer" in ran.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--tasks", "captions=1"), "unknown task 'captions'"),
        (("--tasks", "caption=much"), "could not convert"),
        (("--tasks", "caption=0"), "one of them above 0"),
        (("--pictures", "no/such"), "no pictures in 'no/such'"),
    ],
)
def test_mistakes_end_it(argv: tuple[str, ...], words: str) -> None:
    """A wrong option ends locust at once, with what to change."""
    ran = locust("http://127.0.0.1:9", *argv)
    assert ran.returncode == 1
    assert words in ran.stderr
