"""Measure how long a health probe waits while the service gets many requests, or large ones.

Probes use lasting and new connections, each in a process of its own, so that they do not wait for the load's
Python.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.synchronize import Event
from types import MappingProxyType
from typing import Any

from PIL import Image
from serving import Server

EVERY_S = 0.01
CALM_S = 2.0
ANSWER_S = 120.0
INFER = "/v2/models/florence2/infer"
MIB = 2**20
Body = tuple[str, bytes, dict[str, str]]
"""A path, a request's body, its headers."""


def measure(server: Server, burst: int, mib: int) -> Iterator[tuple[str, float, str]]:
    """For each load: its name, the longest wait of a probe in seconds, and the load's answers.

    burst: requests at once; mib: the size of each large body.
    """
    yield _probed(server, "nothing", lambda: time.sleep(CALM_S) or "")
    for name, make in BODIES.items():
        body = make(mib)
        yield _probed(server, name, lambda: _post(server, *body))  # noqa: B023
    yield _probed(server, f"{burst} requests at once", lambda: asyncio.run(_burst(server, burst)))


def _probed(server: Server, name: str, load: Callable[[], str]) -> tuple[str, float, str]:
    """Run a load and measure the probes meanwhile."""
    context = multiprocessing.get_context("fork")  # a new interpreter would load torch
    begun, over, told = context.Event(), context.Event(), context.SimpleQueue()
    ways = (True, False)
    address = server.url.removeprefix("http://")
    probes = [context.Process(target=_probe, args=(address, way, begun, over, told)) for way in ways]
    for probe in probes:
        probe.start()
        begun.wait()
        begun.clear()
    answer = load()
    over.set()
    longest = max(told.get() for _ in ways)
    for probe in probes:
        probe.join()
    return name, longest, answer


def _probe(address: str, keep: bool, begun: Event, over: Event, told: Any) -> None:
    """Measure the longest wait in seconds, over one connection (`keep`) or a new one each time."""
    longest, connection = 0.0, http.client.HTTPConnection(address, timeout=ANSWER_S)
    while not over.is_set():
        started = time.perf_counter()
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        if not keep:
            connection.close()
        longest = max(longest, time.perf_counter() - started)
        begun.set()
        time.sleep(EVERY_S)
    told.put(longest)


def _post(server: Server, path: str, body: bytes, headers: Mapping[str, str]) -> str:
    """Post a body and return the status."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", path, body, dict(headers))
        return str(connection.getresponse().status)


async def _burst(server: Server, count: int) -> str:
    """The statuses of `count` requests whose connections are opened at the same time."""
    image = base64.b64encode(_picture()).decode()
    body = json.dumps({"image": image, "num_beams": 1}).encode()
    head = f"POST /caption HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")

    async def ask() -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body)
        status = (await reader.readline()).split()[1].decode()
        writer.close()
        return status

    statuses = await asyncio.gather(*(ask() for _ in range(count)))
    return ", ".join(f"{statuses.count(each)} times {each}" for each in sorted(set(statuses)))


def _picture() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return file.getvalue()


def _upload(mib: int) -> Body:
    """A form with a large picture."""
    part = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = part + _picture() + os.urandom(mib * MIB) + b"\r\n--edge--\r\n"
    return "/caption", body, {"Content-Type": "multipart/form-data; boundary=edge"}


def _text(mib: int) -> str:
    """A large picture as base64."""
    return base64.b64encode(_picture() + os.urandom(mib * MIB * 3 // 4)).decode()


def _inputs(image: str) -> dict[str, object]:
    """The body of a v2 request."""
    values = {"INPUT_IMAGE": image, "TASK_PROMPT": "<CAPTION>"}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in values.items()
    ]
    return {"inputs": inputs}


def _lines(mib: int) -> Body:
    """A JSON body with base64 in lines."""
    text = base64.encodebytes(os.urandom(mib * MIB * 5 // 7)).decode()
    return "/caption", json.dumps({"image": text}).encode(), {}


BODIES: Mapping[str, Callable[[int], Body]] = MappingProxyType(
    {
        "an upload": _upload,
        "base64 in typed JSON": lambda mib: ("/caption", json.dumps({"image": _text(mib)}).encode(), {}),
        "base64 in lines": _lines,
        "base64 over v2": lambda mib: (INFER, json.dumps(_inputs(_text(mib))).encode(), {}),
        "escapes": lambda mib: ("/caption", b'{"image":"' + b"\\/" * (mib * MIB // 2) + b'"}', {}),
        "letters beyond ASCII": lambda mib: (
            INFER,
            json.dumps(_inputs("\u00e9" * (mib * MIB // 2)), ensure_ascii=False).encode(),
            {},
        ),
        "many objects": lambda mib: (INFER, b'{"inputs":[' + b"{}," * (mib * MIB // 3) + b"0]}", {}),
    }
)
"""Name -> a function that makes a body of this number of MiB."""
