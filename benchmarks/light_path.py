"""Measure the cost of the way to the model: the service in front of an echo, and BentoML with one bare route.

    python benchmarks/light_path.py --seconds 4 --rounds 5

Each round sends the same picture of 240 KB for some seconds to a mounted route that only reads the body, to
the v2 endpoint as base64 in JSON, and to the v2 endpoint over gRPC as a binary tensor. Prints requests per
second (median of the rounds), their ratio to the bare route's, and the server's CPU time per request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from bodies import INFER, as_text, grpc_request, v2_request
from command import parser_of
from serving import Server, cpu_seconds, serving
from tritonclient.grpc import service_pb2_grpc

PICTURE = b"\x89PNG" + os.urandom(240 * 1024)  # no service here decodes it
Sender = Callable[[float], Awaitable[int]]
"""A function that sends requests until this value of `time.perf_counter()` and returns their number."""


@dataclass
class PathRow:
    """One way to the service, and the figures of each round. sender: makes a sender for one connection."""

    name: str
    server: Server
    sender: Callable[[], Sender]
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def start(target: str) -> contextlib.AbstractContextManager[Server]:
    """A service of this folder."""
    return serving(target, Path(__file__).parent, FLORENCE_MODEL="demo")


def json_body(task: str) -> bytes:
    """A request as the users of the replaced deployment send it."""
    return json.dumps({"id": "1", **v2_request(as_text(PICTURE), task)}).encode()


def http_sender(server: Server, path: str, body: bytes, content_type: str = "application/json") -> Sender:
    """A sender of plain HTTP/1.1 over one connection, with little work of its own."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body

    async def send(end: float) -> int:
        port = int(server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        count = 0
        while not count or time.perf_counter() < end:
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
    """A sender of unary calls over one channel, with the picture's bytes as a binary tensor."""
    request = grpc_request(PICTURE)

    async def send(end: float) -> int:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            count = 0
            while not count or time.perf_counter() < end:
                await stub.ModelInfer(request)
                count += 1
            return count

    return send


def answered(senders: Sequence[Sender], seconds: float) -> tuple[int, float]:
    """Run all senders at the same time; return the number of answered requests and the seconds taken."""

    async def all_of_them() -> int:
        end = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(send(end) for send in senders)))

    started = time.perf_counter()
    return asyncio.run(all_of_them()), time.perf_counter() - started


def measure(row: PathRow, seconds: float, connections: int) -> None:
    """Measure one row in one round."""
    used = cpu_seconds(row.server.process.pid)
    count, taken = answered([row.sender() for _ in range(connections)], seconds)
    row.rates.append(count / taken)
    row.cpu_ms.append(1000 * (cpu_seconds(row.server.process.pid) - used) / count)


def main() -> None:
    """Run the command."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    with start("bare_service:bare") as bare, start("echo_services:echo") as echo:
        body, read = json_body("<CAPTION>"), json_body("<OCR>")
        rows = [
            PathRow("bare route", bare, lambda: http_sender(bare, "/bare", body)),
            PathRow("v2, base64 in JSON", echo, lambda: http_sender(echo, INFER, body)),
            PathRow("... the echo reads base64", echo, lambda: http_sender(echo, INFER, read)),
            PathRow("v2 over gRPC, binary", echo, lambda: grpc_sender(echo)),
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
