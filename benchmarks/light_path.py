"""What the way to the model costs: the service before an echo of 0 ms, against BentoML with one bare route.

    python benchmarks/light_path.py --seconds 4 --rounds 5

Each round sends the same picture of 240 KB for some seconds to a mounted route that only reads the body, to
the v2 endpoint as base64 in JSON, and to the v2 endpoint over gRPC as a binary tensor. Prints requests a
second (median of the rounds), their ratio to the bare route's, and the server's CPU time for one request.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

PICTURE = b"\x89PNG" + os.urandom(240 * 1024)  # nobody opens it
INFER = "/v2/models/florence2/infer"
START_S = 120.0
Sender = Callable[[float], Awaitable[int]]
"""Sends requests one after the other until that reading of `time.perf_counter()`; gives their number."""


@dataclass
class Server:
    """A running service of `echo_services`."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    grpc_port: int


@dataclass
class Row:
    """One way, and what was measured in each round. sender: makes a sender for one connection."""

    name: str
    server: Server
    sender: Callable[[], Sender]
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


@contextlib.contextmanager
def serving(target: str) -> Iterator[Server]:
    """`bentoml serve` of a service in `echo_services`."""
    port, grpc_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as home:
        variables = {
            **os.environ,
            "BENTOML_HOME": home,
            "BENTOML_DO_NOT_TRACK": "true",
            "FLORENCE_MODEL": "demo",
            "FLORENCE_GRPC_PORT": str(grpc_port),
            "FLORENCE_GRPC_HOST": "127.0.0.1",
        }
        command = [sys.executable, "-m", "bentoml", "serve", f"echo_services:{target}"]
        with (Path(home) / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                cwd=Path(__file__).parent,
                env=variables,
                stdout=log,
                stderr=log,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(process, url)
            yield Server(target, process, url, grpc_port)
        finally:
            process.terminate()
            process.wait(60)


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url + "/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not start")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def json_body() -> bytes:
    """The request as the replaced deployment's users send it."""
    values = {"INPUT_IMAGE": base64.b64encode(PICTURE).decode(), "TASK_PROMPT": "<CAPTION>"}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in values.items()
    ]
    return json.dumps({"id": "1", "inputs": inputs}).encode()


def http_sender(server: Server, path: str, body: bytes) -> Sender:
    """Plain HTTP/1.1 over one connection, with as little work here as can be."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body

    async def send(end: float) -> int:
        port = int(server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        count = 0
        while time.perf_counter() < end:
            writer.write(request)
            await writer.drain()
            reply = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not reply.startswith(b"http/1.1 200"):
                raise SystemExit(f"{path} answered {reply.decode()}")
            await reader.readexactly(int(reply.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            count += 1
        writer.close()
        return count

    return send


def grpc_sender(server: Server) -> Sender:
    """Unary calls over one channel, the picture's bytes as a binary tensor."""
    request = service_pb2.ModelInferRequest(model_name="florence2")
    for name, value in (("INPUT_IMAGE", PICTURE), ("TASK_PROMPT", b"<CAPTION>")):
        request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)

    async def send(end: float) -> int:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            count = 0
            while time.perf_counter() < end:
                await stub.ModelInfer(request)
                count += 1
            return count

    return send


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds that a server and its workers have used."""
    parent = psutil.Process(process.pid)
    times = [member.cpu_times() for member in (parent, *parent.children(recursive=True))]
    return float(sum(used.user + used.system for used in times))


def measure(row: Row, seconds: float, connections: int) -> None:
    """One round of one row."""
    senders = [row.sender() for _ in range(connections)]

    async def all_of_them() -> int:
        end = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(send(end) for send in senders)))

    used, started = cpu_s(row.server.process), time.perf_counter()
    count = asyncio.run(all_of_them())
    row.rates.append(count / (time.perf_counter() - started))
    row.cpu_ms.append(1000 * (cpu_s(row.server.process) - used) / count)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    with serving("bare") as bare, serving("echo") as echo, serving("reading_echo") as reading:
        body = json_body()
        rows = [
            Row("bare route", bare, lambda: http_sender(bare, "/bare", body)),
            Row("v2, base64 in JSON", echo, lambda: http_sender(echo, INFER, body)),
            Row("... the echo reads base64", reading, lambda: http_sender(reading, INFER, body)),
            Row("v2 over gRPC, binary", echo, lambda: grpc_sender(echo)),
        ]
        for _ in range(arguments.rounds):
            for row in rows:
                measure(row, arguments.seconds, arguments.connections)
    print("| | requests/s | of the bare route | CPU ms a request | of the bare route |")
    print("|---|---|---|---|---|")
    base, base_cpu = statistics.median(rows[0].rates), statistics.median(rows[0].cpu_ms)
    for row in rows:
        rate, cpu = statistics.median(row.rates), statistics.median(row.cpu_ms)
        print(f"| {row.name} | {rate:.0f} | {rate / base:.2f} | {cpu:.2f} | {cpu / base_cpu:.2f} |")


if __name__ == "__main__":
    main()
