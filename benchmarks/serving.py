"""A service in a process of its own, for the benchmarks over HTTP or gRPC."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from ports import free_port

ROOT = Path(__file__).resolve().parents[1]
START_S = 180.0
STOP_S = 60.0


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`. url: without a final slash; grpc_port: the port of gRPC; log: the file of
    its output."""

    process: subprocess.Popen[bytes]
    url: str
    grpc_port: int
    log: Path


@contextlib.contextmanager
def serving(target: str, folder: Path = ROOT, **environment: str) -> Iterator[Server]:
    """Run `bentoml serve target` in a folder, with these variables added to the environment; yield it when
    ready."""
    port, grpc_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as home:
        variables = {
            **os.environ,
            "BENTOML_HOME": home,  # two services with one home delete each other's metrics
            "BENTOML_DO_NOT_TRACK": "true",
            "FLORENCE_GRPC_HOST": "127.0.0.1",
            "FLORENCE_GRPC_PORT": str(grpc_port),
            **environment,
        }
        words = ["serve", target, "--host", "127.0.0.1", "--port", str(port)]
        log_path = Path(home) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bentoml", *words], cwd=folder, env=variables, stdout=log, stderr=log
            )
        server = Server(process, f"http://127.0.0.1:{port}", grpc_port, log_path)
        try:
            wait_ready(server)
            yield server
        finally:
            process.terminate()
            process.wait(STOP_S)


def cpu_seconds(pid: int) -> float:
    """CPU seconds used by a process and its descendants."""
    parent = psutil.Process(pid)
    times = [member.cpu_times() for member in (parent, *parent.children(recursive=True))]
    return float(sum(used.user + used.system for used in times))


def wait_ready(server: Server) -> None:
    """Wait until /readyz answers 200, or end the benchmark with the service's log."""
    end = time.monotonic() + START_S
    with httpx.Client(trust_env=False) as client:  # made once: it takes 20 ms of CPU time
        while time.monotonic() < end and server.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{server.url}/readyz").status_code == httpx.codes.OK:
                    return
            time.sleep(0.1)
    raise SystemExit(f"the service did not start:\n{server.log.read_text(errors='replace')}")
