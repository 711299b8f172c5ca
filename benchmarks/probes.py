"""Measure how long a health probe waits while the service gets many requests, or large ones.

Probes use lasting and new connections, each in a process of its own, so that they do not wait for the load's
Python.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.synchronize import Event
from types import MappingProxyType
from typing import Any

from bodies import FORM, INFER, as_text, form, small_picture, v2_request
from serving import Server

EVERY_S = 0.01
CALM_S = 2.0
ANSWER_S = 120.0
FORK = multiprocessing.get_context("fork")  # a new interpreter would load torch
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
    address = server.url.removeprefix("http://")
    connections = {
        keep: http.client.HTTPConnection(address, timeout=ANSWER_S) for keep in ("kept", "new each time")
    }
    asks = {keep: partial(_probe, each, keep == "kept") for keep, each in connections.items()}
    with waiting(asks, EVERY_S) as longest:
        answer = load()
    return name, max(longest.values()), answer


def _probe(connection: http.client.HTTPConnection, keep: bool) -> None:
    """Send one probe over this connection; close the connection afterwards unless `keep`."""
    connection.request("GET", "/v2/health/live")
    connection.getresponse().read()
    if not keep:
        connection.close()


@contextlib.contextmanager
def waiting(asks: Mapping[str, Callable[[], object]], every_s: float) -> Iterator[dict[str, float]]:
    """A context in which each of these is called repeatedly, in a process of its own.

    Yields the longest wait of each in seconds, which is filled in when the context ends.
    """
    begun, over, told = FORK.Event(), FORK.Event(), FORK.SimpleQueue()
    longest: dict[str, float] = {}
    processes = [
        FORK.Process(target=_ask_on, args=(name, ask, every_s, begun, over, told))
        for name, ask in asks.items()
    ]
    for process in processes:
        process.start()
        begun.wait()
        begun.clear()
    yield longest
    over.set()
    longest |= dict(told.get() for _ in processes)
    for process in processes:
        process.join()


def _ask_on(
    name: str, ask: Callable[[], object], every_s: float, begun: Event, over: Event, told: Any
) -> None:
    """Call `ask` every `every_s` seconds until `over`; put the longest wait in `told`."""
    longest = 0.0
    while not over.is_set():
        started = time.perf_counter()
        ask()
        longest = max(longest, time.perf_counter() - started)
        begun.set()
        time.sleep(every_s)
    told.put((name, longest))


def _post(server: Server, path: str, body: bytes, headers: Mapping[str, str]) -> str:
    """Post a body and return the status."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", path, body, dict(headers))
        return str(connection.getresponse().status)


async def _burst(server: Server, count: int) -> str:
    """The statuses of `count` requests whose connections are opened at the same time."""
    body = json.dumps({"image": as_text(small_picture()), "num_beams": 1}).encode()
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


def _text(mib: int) -> str:
    """A large picture as base64."""
    return as_text(small_picture() + os.urandom(mib * MIB * 3 // 4))


def _lines(mib: int) -> Body:
    """A JSON body with base64 in lines."""
    text = base64.encodebytes(os.urandom(mib * MIB * 5 // 7)).decode()
    return "/caption", json.dumps({"image": text}).encode(), {}


BODIES: Mapping[str, Callable[[int], Body]] = MappingProxyType(
    {
        "an upload": lambda mib: ("/caption", form(small_picture() + os.urandom(mib * MIB)), FORM),
        "base64 in typed JSON": lambda mib: ("/caption", json.dumps({"image": _text(mib)}).encode(), {}),
        "base64 in lines": _lines,
        "base64 over v2": lambda mib: (INFER, json.dumps(v2_request(_text(mib))).encode(), {}),
        "escapes": lambda mib: ("/caption", b'{"image":"' + b"\\/" * (mib * MIB // 2) + b'"}', {}),
        "letters beyond ASCII": lambda mib: (
            INFER,
            json.dumps(v2_request("\u00e9" * (mib * MIB // 2)), ensure_ascii=False).encode(),
            {},
        ),
        "many objects": lambda mib: (INFER, b'{"inputs":[' + b"{}," * (mib * MIB // 3) + b"0]}", {}),
    }
)
"""Name -> a function that makes a body of this number of MiB."""
