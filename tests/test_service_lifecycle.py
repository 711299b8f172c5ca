"""Start and stop of real server processes: refusals, clients that leave, draining, over HTTP and gRPC."""

from __future__ import annotations

import base64
import json
import queue
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton
from PIL import Image
from serving import ROOT, STOP_S, Server, free_port, listening, serving, serving_fake
from triton_client import triton_inputs
from waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow


def _picture() -> bytes:
    """A small PNG."""
    file = BytesIO()
    Image.new("RGB", (8, 8), "green").save(file, "PNG")
    return file.getvalue()


def test_a_misspelt_setting_ends_the_start_with_one_sentence() -> None:
    """A misspelt setting ends the start with one sentence that names the right one, without a traceback."""
    with serving(".", FLORENCE_MODLE="demo") as server:
        assert server.wait() != 0
        assert server.log.strip().endswith(
            "florence: unknown setting FLORENCE_MODLE: did you mean FLORENCE_MODEL?"
        )
        assert "Traceback" not in server.log


def test_a_checkpoint_that_is_not_there_ends_the_start_with_what_to_do() -> None:
    """A missing checkpoint ends the start before a worker starts, with what to change."""
    with serving(".", FLORENCE_MODEL="/nowhere/at/all") as server:
        assert server.wait() != 0
        assert "florence: " in server.log
        assert "/nowhere/at/all" in server.log
        assert "Traceback" not in server.log


def test_a_header_that_is_no_text_gets_its_whole_answer(fake_server: Server) -> None:
    """A header that is not text gets a complete answer, even if the access log can't write it."""
    headers = {"content-type": b"application/json; x=\xe9"}
    answer = httpx.post(f"{fake_server.url}/caption", content=b"{}", headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]


def test_a_worker_that_breaks_answers_first_and_is_replaced() -> None:
    """A request in flight in a broken worker gets its error; then BentoML replaces the worker."""
    with serving("fake_service:service", ROOT / "tests", FLORENCE_MODEL="breaks") as server:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/caption", files={"image": _picture()}, timeout=60)
        assert answer.status_code == 500
        assert "the device is gone" in answer.text
        wait_until(lambda: server.log.count("ready: ") == 2)
        assert server.log.count("this worker ends") == 1


def test_a_port_that_is_taken_ends_the_start_with_a_sentence() -> None:
    """A port in use ends the start with one sentence, and is not tried again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving_fake(FLORENCE_GRPC_PORT=str(port), FLORENCE_GRPC_HOST="127.0.0.1") as server:
            assert server.wait() == 1
            assert server.log.count("FLORENCE_GRPC_PORT names another port") == 1
            assert "Traceback" not in server.log


@dataclass
class Held:
    """A server that answers a task once the folder `go` has a file of its name; `trace` has the model's
    events."""

    server: Server
    go: Path
    trace: Path

    def events(self) -> list[str]:
        """The model's events so far."""
        return self.trace.read_text().split() if self.trace.exists() else []


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    """The server, which the last test stops."""
    folder = tmp_path_factory.mktemp("held")
    trace = folder / "trace"
    fake = {"until": str(folder), "trace": str(trace), "threads": 2}
    grpc = {"FLORENCE_GRPC_PORT": str(free_port()), "FLORENCE_GRPC_HOST": "127.0.0.1"}
    with serving_fake(fake, FLORENCE_TIMEOUT_S=str(PATIENCE_S), **grpc) as server:
        server.wait_ready()
        yield Held(server, folder, trace)


def test_work_of_clients_that_left_is_cancelled_and_others_go_on(held: Held) -> None:
    """A closed connection cancels its request, on typed and v2 endpoints; the next request is answered."""
    encoded = base64.b64encode(_picture()).decode()
    _send_and_leave(held, "/caption", {"image": encoded}, 1)
    tensors = {"INPUT_IMAGE": encoded, "TASK_PROMPT": "<OD>"}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in tensors.items()
    ]
    _send_and_leave(held, "/v2/models/florence2/infer", {"inputs": inputs}, 2)
    for path in ("/caption", "/v2/models/florence2/infer"):
        _send(held.server, path, b'{"image": "', 1000).close()  # in the middle of its body
    (held.go / "CAPTION").touch()
    answer = httpx.post(f"{held.server.url}/caption", files={"image": _picture()}, timeout=60)
    assert answer.status_code == 200
    assert "Traceback" not in held.server.log


def test_tritons_client_is_served(held: Held) -> None:
    """Triton's client gets metadata, an answer and a stream."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    inputs = triton_inputs(_picture())
    (held.go / "CAPTION").touch()
    with triton.InferenceServerClient(f"127.0.0.1:{held.server.grpc_port}") as client:
        assert client.is_server_ready()
        assert client.is_model_ready("florence2")
        assert client.get_model_config("florence2").config.max_batch_size == 36
        result = client.infer("florence2", inputs, request_id="1", compression_algorithm="gzip")
        assert result.as_numpy("PARSED_JSON").tolist() == [[b'{"<CAPTION>": "a fake"}']]
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("florence2", inputs, request_id="2")
        streamed, error = answers.get(timeout=PATIENCE_S)
        assert error is None
        assert streamed.get_response().id == "2"


def test_sigterm_answers_what_is_in_flight_then_closes_the_model_and_ends(held: Held) -> None:
    """After SIGTERM, requests in flight are answered over HTTP and gRPC; then the model is closed, and the
    exit status is 0."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    (held.go / "CAPTION").unlink(missing_ok=True)
    before = len(held.events())
    with (
        ThreadPoolExecutor(1) as pool,
        triton.InferenceServerClient(f"127.0.0.1:{held.server.grpc_port}") as client,
    ):
        files = {"image": _picture()}
        reply = pool.submit(httpx.post, f"{held.server.url}/caption", files=files, timeout=STOP_S)
        inputs = triton_inputs(_picture(), b"<OD>")
        client.async_infer(
            "florence2", inputs, lambda result, error: answers.put((result, error)), request_id="3"
        )
        wait_until(lambda: held.events()[before:] == ["start"] * 2)
        (worker,) = held.server.workers()
        held.server.terminate()
        wait_until(lambda: [each.port for each in listening(worker)] == [held.server.grpc_port])
        (held.go / "CAPTION").touch()  # HTTP, which is stopped first, waits for it
        wait_until(lambda: not listening(worker))
        (held.go / "OD").touch()
        assert reply.result().status_code == 200
        last, error = answers.get(timeout=PATIENCE_S)
        assert error is None
        assert last.get_response().id == "3"
    assert held.server.wait() == 0
    assert held.events()[before:] == ["start", "start", "done", "done", "close"]
    assert "Traceback" not in held.server.log


def _send(server: Server, path: str, body: bytes, length: int) -> socket.socket:
    """A connection with a sent head that promises a body of `length`, and these bytes of it."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def _send_and_leave(held: Held, path: str, content: object, count: int) -> None:
    """Send a request, leave when it has started, and wait until it is cancelled."""
    body = json.dumps(content).encode()
    with _send(held.server, path, body, len(body)):
        wait_until(lambda: held.events().count("start") == count)
    wait_until(lambda: held.events().count("cancelled") == count)
