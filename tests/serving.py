"""Real server processes for tests: `bentoml serve` on a free port, its log, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from ports import free_port

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0
STOP_S = 120.0


@dataclass
class Server:
    """A running `bentoml serve`. url: without a final slash; log: its output so far; grpc_port: the port of
    gRPC, 0 if it is off."""

    process: subprocess.Popen[bytes]
    url: str
    log_path: Path
    grpc_port: int

    @property
    def log(self) -> str:
        """The server's output so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self) -> None:
        """Wait until /readyz answers 200; fail with the log if the process ends before."""
        end = time.monotonic() + START_S
        with httpx.Client(timeout=10) as client:  # made once: it takes 20 ms of CPU time
            while time.monotonic() < end:
                if self.process.poll() is not None:
                    pytest.fail(f"the server ended with {self.process.returncode}:\n{self.log}")
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/readyz").status_code == 200:
                        return
                time.sleep(0.05)
        pytest.fail(f"the server was not ready after {START_S} s:\n{self.log}")

    def refuses(self) -> bool:
        """True if no process listens at its port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.url.rpartition(":")[2]))) != 0

    def workers(self) -> list[psutil.Process]:
        """The live worker processes."""
        return [
            each
            for each in psutil.Process(self.process.pid).children()
            if each.status() != psutil.STATUS_ZOMBIE and "worker.service" in " ".join(each.cmdline())
        ]

    def terminate(self) -> None:
        """Send SIGTERM, as an orchestrator does to stop the service."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(STOP_S)


def listening(process: psutil.Process) -> list[Any]:
    """The addresses at which the process accepts connections."""
    return [each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]


@contextlib.contextmanager
def serving(
    target: str, directory: Path = ROOT, arguments: Sequence[str] = (), **environment: str
) -> Iterator[Server]:
    """Run `bentoml serve target` in a directory, with these arguments (`model=demo`) and variables; kill it
    at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="florence-serve-") as home:
        port = free_port()
        log_path = Path(home) / "server.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLORENCE_")}
        variables = {
            **inherited,
            "BENTOML_HOME": home,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "FLORENCE_GRPC_PORT": "0",
            **environment,
        }
        command = [
            sys.executable,
            "-m",
            "bentoml",
            "serve",
            target,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *(f"--arg={argument}" for argument in arguments),
        ]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, cwd=directory, env=variables, stdout=log, stderr=log)
        try:
            yield Server(process, f"http://127.0.0.1:{port}", log_path, int(variables["FLORENCE_GRPC_PORT"]))
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextlib.contextmanager
def serving_fake(fields: dict[str, object] | None = None, **environment: str) -> Iterator[Server]:
    """Run the service with a fake model that has these fields; see `fake_model.load_fake`."""
    model = json.dumps(fields or {})
    with serving("fake_service:service", ROOT / "tests", FLORENCE_MODEL=model, **environment) as server:
        yield server


@contextlib.contextmanager
def serving_demo(**environment: str) -> Iterator[Server]:
    """Run the demo checkpoint in float32 over HTTP and gRPC, with these variables; yield it when ready.
    Bodies have 12 MB at most."""
    ports = {"FLORENCE_GRPC_PORT": str(free_port()), "FLORENCE_GRPC_HOST": "127.0.0.1"}
    settings = {"FLORENCE_MODEL": "demo", "FLORENCE_DTYPE": "float32", "FLORENCE_MAX_BODY_BYTES": "12000000"}
    with serving("service:service", **settings, **ports, **environment) as server:
        server.wait_ready()
        yield server
