"""gRPC in real server processes: Triton's own client, draining, a taken port."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from serving import Server, free_port, serving_fake
from triton_client import triton_inputs
from v2 import picture
from waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What the fake model has begun and ended."""
    return tmp_path / "trace"


@pytest.fixture
def server(port: int, trace: Path) -> Iterator[Server]:
    fake = {"delay_s": 0.5, "trace": str(trace)}
    with serving_fake(fake, FLORENCE_GRPC_PORT=str(port), FLORENCE_GRPC_HOST="127.0.0.1") as started:
        started.wait_ready()
        yield started


def test_tritons_client_is_served_and_a_stop_finishes_what_came(
    server: Server, port: int, trace: Path
) -> None:
    """Metadata, one answer, a stream; and a request that is on its way at SIGTERM is answered."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    inputs = triton_inputs(picture())

    def keep(result: Any, error: Any) -> None:
        answers.put((result, error))

    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_ready()
        assert client.is_model_ready("florence2")
        assert client.get_model_config("florence2").config.max_batch_size == 36
        result = client.infer("florence2", inputs, request_id="1", compression_algorithm="gzip")
        assert result.as_numpy("PARSED_JSON").tolist() == [[b'{"<CAPTION>": "a fake"}']]
        client.start_stream(keep)
        client.async_stream_infer("florence2", inputs, request_id="2")
        streamed, error = answers.get(timeout=120)
        assert error is None
        assert streamed.get_response().id == "2"
        client.stop_stream()
        client.async_infer("florence2", inputs, keep, request_id="3")
        wait_until(lambda: trace.read_text().split().count("start") == 3)
        server.terminate()
        last, error = answers.get(timeout=120)
        assert error is None
        assert last.get_response().id == "3"
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_a_port_that_is_taken_ends_the_start_with_a_sentence(port: int) -> None:
    """Not a service that lacks half of itself, started again and again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        fake = serving_fake(FLORENCE_GRPC_PORT=str(port), FLORENCE_GRPC_HOST="127.0.0.1")
        with fake as server:
            assert server.wait() == 1
            assert server.log.count("FLORENCE_GRPC_PORT names another port") == 1
            assert "Traceback" not in server.log
