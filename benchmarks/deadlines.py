"""Measure how long after its time limit a request fails, behind pictures that take seconds to read, on every
interface."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import httpx
from bodies import INFER, as_text, grpc_request, v2_request
from PIL import Image
from serving import Server, serving
from tritonclient.grpc import service_pb2_grpc

SLOW = 8  # pictures before the measured one: several for each reader
ANSWER_S = 120.0
Door = Callable[[bytes], object]
"""A function that sends one picture and returns the answer's status."""


def slow_picture(side: int) -> bytes:
    """A PNG of few bytes that takes long to decode and to resize."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def measure(limit_s: float, side: int) -> Iterator[tuple[str, float, str]]:
    """For each interface: its name, the seconds from a request to its answer, and the answer's status.

    `limit_s`: the time limit of every request. `side`: pixels of the slow pictures' sides.
    """
    slow = slow_picture(side)
    yield from _library(limit_s, slow)
    settings = {"FLORENCE_MODEL": "demo", "FLORENCE_TIMEOUT_S": str(limit_s), "FLORENCE_MAX_QUEUE": "64"}
    with ExitStack() as stack:
        server = stack.enter_context(serving("service:service", **settings))
        client = stack.enter_context(httpx.Client(timeout=ANSWER_S))
        crowd = stack.enter_context(ThreadPoolExecutor(SLOW))
        for name, door in _doors(server, client).items():
            waiting = [crowd.submit(_typed(client, server), slow) for _ in range(SLOW)]
            time.sleep(limit_s / 4)  # they are being read
            started = time.perf_counter()
            status = str(door(slow))
            yield name, time.perf_counter() - started, status
            for future in waiting:
                future.result()


def _library(limit_s: float, slow: bytes) -> Iterator[tuple[str, float, str]]:
    """The measurement for the library."""
    from florence import Florence2

    with Florence2.load("demo", device="cpu") as model:
        waiting: list[Future[Any]] = [model.submit(slow, "<CAPTION>") for _ in range(SLOW)]
        started = time.perf_counter()
        error = model.submit(slow, "<CAPTION>", timeout_s=limit_s).exception()
        yield "library", time.perf_counter() - started, type(error).__name__
        for future in waiting:
            future.cancel()


def _doors(server: Server, client: httpx.Client) -> dict[str, Door]:
    """A function for each interface that sends one picture."""

    def v2(picture: bytes) -> object:
        return client.post(f"{server.url}{INFER}", json=v2_request(as_text(picture))).status_code

    def generate(picture: bytes) -> object:
        body = {"INPUT_IMAGE": as_text(picture), "TASK_PROMPT": "<CAPTION>"}
        return client.post(f"{server.url}/v2/models/florence2/generate", json=body).status_code

    def analyze(picture: bytes) -> object:
        tasks = json.dumps([{"task": "caption"}])
        form = {"data": {"tasks": tasks}, "files": {"image": picture}}
        return client.post(f"{server.url}/analyze", **form).status_code

    def over_grpc(picture: bytes) -> object:
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
            try:
                service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(grpc_request(picture))
            except grpc.RpcError as error:
                return error.code().name  # type: ignore[attr-defined]  # an error of a call has a code
            return "OK"

    return {
        "typed": _typed(client, server),
        "analyze": analyze,
        "v2": v2,
        "v2 generate": generate,
        "v2 over gRPC": over_grpc,
    }


def _typed(client: httpx.Client, server: Server) -> Door:
    """A function that sends a picture to a typed endpoint."""
    return lambda picture: client.post(f"{server.url}/caption", files={"image": picture}).status_code
