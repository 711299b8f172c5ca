"""A service that starts, can't start, loses a worker or its supervisor: real processes with a fake model."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import grpc
import psutil
import pytest
import requests
import tritonclient.grpc as triton
from serving import START_S, Server, free_port, serving, serving_fake
from triton_client import triton_inputs
from tritonclient.utils import InferenceServerException
from v2 import picture
from waiting import wait_until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


def workers_of(server: Server) -> list[psutil.Process]:
    """The processes that serve and live."""
    children = psutil.Process(server.process.pid).children()
    return [
        each
        for each in children
        if each.status() != psutil.STATUS_ZOMBIE and "worker.service" in " ".join(each.cmdline())
    ]


def test_while_the_model_loads_probes_live_and_all_else_is_503_at_once(tmp_path: Path) -> None:
    """HTTP and gRPC; also for a body that never comes. Then all doors open."""
    port, loaded = free_port(), tmp_path / "loaded"
    with serving_fake({"load_until": str(loaded)}, FLORENCE_GRPC_PORT=str(port)) as server:
        wait_until(lambda: "gRPC on 127.0.0.1" in server.log and not server.refuses(), START_S)
        for path in ("/livez", "/healthz", "/v2/health/live", "/metrics"):
            assert requests.get(server.url + path, timeout=30).status_code == 200, path
        doors = ["/readyz", "/v2/health/ready", "/v2", "/v2/models/florence2", "/info", "/unknown"]
        for path in doors:
            reply = requests.get(server.url + path, timeout=30)
            assert (reply.status_code, reply.headers["Retry-After"]) == (503, "2"), path
            assert "not ready" in reply.json()["error"]
        for path in ("/caption", "/analyze", "/v2/models/florence2/infer"):
            promised = {"Content-Length": "1000000", "Content-Type": "application/json"}  # and never sent
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 30) as sender:
                head = "".join(f"{name}: {value}\r\n" for name, value in promised.items())
                sender.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode())
                assert b" 503 " in sender.recv(100).splitlines()[0], path
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
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
            loaded.touch()
            server.wait_ready()
            assert client.is_server_ready()
            assert client.infer("florence2", triton_inputs(picture())).as_numpy("PARSED_JSON").size == 1


def test_a_stop_while_the_model_loads_ends_at_once(tmp_path: Path) -> None:
    """Not after the loading, and in order."""
    with serving_fake({"load_until": str(tmp_path / "never")}) as server:
        wait_until(lambda: "loading" in server.log and not server.refuses(), START_S)
        server.terminate()
        assert server.wait() == 0


def test_weights_that_are_cut_end_the_start_with_status_1(tmp_path: Path) -> None:
    """And one line that says why."""
    source = ROOT / "florence" / "demo" / "checkpoint"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 10**6] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with serving("service:service", FLORENCE_MODEL=str(tmp_path)) as server:
        assert server.wait() == 1
        assert server.log.count("is not a complete safetensors file") == 1
        assert "Traceback" not in server.log


def test_a_killed_worker_is_replaced_at_once() -> None:
    """By the supervisor's next look at it, not ten seconds later; its ports are taken over. gRPC listens
    where HTTP does: `--host` moves both."""
    port = free_port()
    with serving_fake(FLORENCE_GRPC_PORT=str(port)) as server:
        server.wait_ready()
        (before,) = workers_of(server)
        before.send_signal(signal.SIGKILL)
        wait_until(lambda: [each.pid for each in workers_of(server)] not in ([], [before.pid]))
        server.wait_ready()
        assert (
            requests.post(server.url + "/caption", files={"image": picture()}, timeout=30).status_code == 200
        )
        connections = workers_of(server)[0].net_connections("tcp")
        (listening,) = [each for each in connections if each.laddr.port == port and each.status == "LISTEN"]
        assert listening.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1")


def test_a_killed_supervisor_takes_its_workers_with_it() -> None:
    """No worker goes on serving without a process that replaces or stops it."""
    with serving_fake() as server:
        server.wait_ready()
        workers = workers_of(server)
        assert workers
        server.process.kill()
        psutil.wait_procs(workers, timeout=60)
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
