"""Start and stop of real server processes: refusals, readiness, draining, clients that leave."""

from __future__ import annotations

import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image
from serving import ROOT, START_S, STOP_S, Server, serving, serving_fake
from waiting import wait_until

pytestmark = pytest.mark.slow


def _picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), "green").save(file, "PNG")
    return file.getvalue()


def _events(trace: Path) -> list[str]:
    return trace.read_text().split() if trace.exists() else []


def test_a_misspelt_setting_ends_the_start_with_one_sentence() -> None:
    """No traceback, no server: the message says which variable was meant."""
    with serving(".", FLORENCE_MODLE="demo") as server:
        assert server.wait() != 0
        assert server.log.strip().endswith(
            "florence: unknown setting FLORENCE_MODLE: did you mean FLORENCE_MODEL?"
        )
        assert "Traceback" not in server.log


def test_a_checkpoint_that_is_not_there_ends_the_start_with_what_to_do() -> None:
    """Found before any worker starts."""
    with serving(".", FLORENCE_MODEL="/nowhere/at/all") as server:
        assert server.wait() != 0
        assert "florence: " in server.log
        assert "/nowhere/at/all" in server.log
        assert "Traceback" not in server.log


def test_a_header_that_is_no_text_gets_its_whole_answer(fake_server: Server) -> None:
    """Also where the access log can't write it."""
    headers = {"content-type": b"application/json; x=\xe9"}
    answer = httpx.post(f"{fake_server.url}/caption", content=b"{}", headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]


def test_a_worker_that_breaks_answers_first_and_is_replaced() -> None:
    """A request in flight gets its error, not a broken connection; then the process ends and BentoML starts
    another."""
    with serving("fake_service:service", ROOT / "tests", FLORENCE_MODEL="breaks") as server:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/caption", files={"image": _picture()}, timeout=60)
        assert answer.status_code == 500
        assert "the device is gone" in answer.text
        end = time.monotonic() + START_S
        while server.log.count("ready: ") < 2:
            assert time.monotonic() < end, server.log
            time.sleep(0.1)
        assert server.log.count("this worker ends") == 1


def test_ready_comes_after_loading_and_with_every_worker_on_its_device(tmp_path: Path) -> None:
    """/readyz is not 200 before a model is loaded; two devices are two workers, each with its own."""
    loaded = tmp_path / "loaded"
    with serving_fake({"load_until": str(loaded)}, FLORENCE_DEVICE="cpu,cpu") as server:
        wait_until(lambda: server.log.count("loading ") == 2 and not server.refuses(), START_S)
        assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 503
        assert "ready: " not in server.log
        loaded.touch()
        server.wait_ready()
        wait_until(lambda: server.log.count("ready: ") == 2)  # until then each worker answers for itself
        assert httpx.get(f"{server.url}/v2/health/ready", timeout=60).status_code == 200
        for worker in ("florence2:1]", "florence2:2]"):
            lines = [line for line in server.log.splitlines() if worker in line]
            assert "loading" in lines[0]
            assert any("ready: " in line for line in lines[1:])


def test_sigterm_answers_what_is_in_flight_then_closes_the_model_and_ends(tmp_path: Path) -> None:
    """A request that came before SIGTERM gets its answer; the model is closed after it; the exit is clean."""
    trace = tmp_path / "trace"
    with serving_fake({"delay_s": 1.5, "trace": str(trace)}) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready()
        files = {"image": _picture()}
        reply = pool.submit(httpx.post, f"{server.url}/caption", files=files, timeout=STOP_S)
        wait_until(lambda: "start" in _events(trace))
        server.terminate()
        assert reply.result().status_code == 200
        assert server.wait() == 0
        assert _events(trace) == ["start", "done", "close"]


def test_work_of_clients_that_left_is_cancelled_and_others_go_on(tmp_path: Path) -> None:
    """A closed connection cancels its request on both kinds of endpoints; the next request is answered."""
    trace = tmp_path / "trace"
    with serving_fake({"delay_s": 60, "trace": str(trace)}, FLORENCE_TIMEOUT_S="70") as server:
        server.wait_ready()
        encoded = base64.b64encode(_picture()).decode()
        _send_and_leave(server, "/caption", {"image": encoded}, trace, 1)
        tensors = {"INPUT_IMAGE": encoded, "TASK_PROMPT": "<OD>"}
        inputs = [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
            for name, value in tensors.items()
        ]
        _send_and_leave(server, "/v2/models/florence2/infer", {"inputs": inputs}, trace, 2)
        for path in ("/caption", "/v2/models/florence2/infer"):
            _send(server, path, b'{"image": "', 1000).close()  # in the middle of its body
        assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200
        assert "Traceback" not in server.log
        server.terminate()
        assert server.wait() == 0


def _send(server: Server, path: str, body: bytes, length: int) -> socket.socket:
    """A connection on which a request was sent whose body should have that length."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def _send_and_leave(server: Server, path: str, content: object, trace: Path, count: int) -> None:
    body = json.dumps(content).encode()
    with _send(server, path, body, len(body)):
        wait_until(lambda: _events(trace).count("start") == count)
    wait_until(lambda: _events(trace).count("cancelled") == count)
