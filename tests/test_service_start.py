"""A service that starts, fails to start, or loses a worker or its supervisor: real processes with a fake
model."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
import requests
import tritonclient.grpc as triton
from serving import START_S, Server, free_port, listening, serving, serving_fake
from triton_client import triton_inputs
from tritonclient.utils import InferenceServerException
from v2 import picture
from waiting import PATIENCE_S, wait_until

from florence.client import AsyncClient

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Starting:
    """A service of two workers whose models load until the file `loaded` exists. `asked` is the checkpoint
    in an answer that a client has waited for since before the service listened."""

    server: Server
    loaded: Path
    asked: Future[str]


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starting]:
    """The service while the models load; the last test kills it."""
    loaded = tmp_path_factory.mktemp("starting") / "loaded"
    settings = {"FLORENCE_DEVICE": "cpu,cpu", "FLORENCE_GRPC_PORT": str(free_port())}
    with serving_fake({"load_until": str(loaded)}, **settings) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asyncio.run, checkpoint_of(server.url))
        wait_until(lambda: server.log.count("gRPC on 127.0.0.1") == 2 and not server.refuses(), START_S)
        yield Starting(server, loaded, asked)


async def checkpoint_of(url: str) -> str:
    """The checkpoint in the answer of the service at this URL."""
    async with AsyncClient(url, retries=100) as client:
        return (await client.caption(picture())).checkpoint


@pytest.fixture(scope="module")
def server(starting: Starting) -> Server:
    """The service after the models have loaded."""
    starting.loaded.touch()
    starting.server.wait_ready()
    wait_until(lambda: starting.server.log.count("ready: ") == 2)  # before that, one worker may not be ready
    return starting.server


def test_while_the_model_loads_probes_live_and_all_else_is_503_at_once(starting: Starting) -> None:
    """While the models load, probes of liveness succeed, and all other HTTP and gRPC calls are refused at
    once, also if their body never arrives."""
    server = starting.server
    for path in ("/livez", "/healthz", "/v2/health/live", "/metrics"):
        assert requests.get(server.url + path, timeout=PATIENCE_S).status_code == 200, path
    doors = ["/readyz", "/v2/health/ready", "/v2", "/v2/models/florence2", "/info", "/unknown"]
    for path in doors:
        reply = requests.get(server.url + path, timeout=PATIENCE_S)
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "2"), path
        assert "not ready" in reply.json()["error"]
    for path in ("/caption", "/analyze", "/v2/models/florence2/infer"):
        promised = {"Content-Length": "1000000", "Content-Type": "application/json"}  # never sent
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 30) as sender:
            head = "".join(f"{name}: {value}\r\n" for name, value in promised.items())
            sender.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode())
            assert b" 503 " in sender.recv(100).splitlines()[0], path
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("florence2")
        for call in (
            client.get_server_metadata,
            lambda: client.infer("florence2", triton_inputs(picture())),
        ):
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert caught.value.status() == f"{grpc.StatusCode.UNAVAILABLE}"
    assert "ready:" not in server.log
    assert not starting.asked.done()


def test_all_doors_open_with_every_worker_on_its_device(server: Server) -> None:
    """After loading, HTTP and gRPC answer, and each device has a worker."""
    assert requests.get(f"{server.url}/v2/health/ready", timeout=60).status_code == 200
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.is_server_ready()
        assert client.infer("florence2", triton_inputs(picture())).as_numpy("PARSED_JSON").size == 1
    for worker in ("florence2:1]", "florence2:2]"):
        lines = [line for line in server.log.splitlines() if worker in line]
        assert "loading" in lines[0]
        assert any("ready: " in line for line in lines[1:])


def test_a_client_waits_for_a_server_that_starts(starting: Starting, server: Server) -> None:
    """A client with retries gets its answer from a server that starts, after refused connections and 503s."""
    assert starting.asked.result(PATIENCE_S) == "fake"


def test_a_killed_worker_is_replaced_at_once(server: Server) -> None:
    """A killed worker is replaced at the supervisor's next check, and its ports are used again. gRPC
    listens on HTTP's address, which `--host` sets."""
    before = server.workers()
    for worker in before:
        worker.send_signal(signal.SIGKILL)
    wait_until(lambda: server.log.count("ready: ") == 4)
    server.wait_ready()
    assert not {each.pid for each in before} & {each.pid for each in server.workers()}
    assert (
        requests.post(server.url + "/caption", files={"image": picture()}, timeout=PATIENCE_S).status_code
        == 200
    )
    for worker in server.workers():
        (address,) = [each.ip for each in listening(worker) if each.port == server.grpc_port]
        assert address in ("127.0.0.1", "::ffff:127.0.0.1")


def test_a_killed_supervisor_takes_its_workers_with_it(server: Server) -> None:
    """If the supervisor is killed, its workers end."""
    workers = server.workers()
    assert len(workers) == 2
    server.process.kill()
    psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


def test_a_stop_while_the_model_loads_ends_at_once(tmp_path: Path) -> None:
    """A stop during loading ends the service at once with status 0."""
    with serving_fake({"load_until": str(tmp_path / "never")}) as server:
        wait_until(lambda: "loading" in server.log and not server.refuses(), START_S)
        server.terminate()
        assert server.wait() == 0


def test_weights_that_are_cut_end_the_start_with_status_1(tmp_path: Path) -> None:
    """Incomplete weights end the start with status 1 and one line with the reason."""
    source = ROOT / "florence" / "demo" / "checkpoint"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 10**6] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with serving("service:service", FLORENCE_MODEL=str(tmp_path)) as server:
        assert server.wait() == 1
        assert server.log.count("is not a complete safetensors file") == 1
        assert "Traceback" not in server.log
