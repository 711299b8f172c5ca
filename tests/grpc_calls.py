"""Calls of the v2 protocol over gRPC: messages, and a listening server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from fake_model import FakeModel
from tritonclient.grpc import service_pb2
from v2 import picture, roomy
from waiting import PATIENCE_S

from florence.server.v2.grpc_server import GrpcServer
from florence.server.v2.inference import Inference, ModelRepository
from florence.server.v2.tensors import pack

JPEG = b"\xff\xd8\xff\xe0 picture"
"""The first bytes of a JPEG, for tests in which no model reads the picture."""


def message(columns: dict[str, list[bytes]], *, raw: bool = True, **fields: Any) -> Any:
    """A ModelInferRequest with these elements, packed (`raw`) or as typed contents."""
    made = service_pb2.ModelInferRequest(model_name="florence2", **fields)
    for name, elements in columns.items():
        tensor = made.inputs.add(name=name, datatype="BYTES", shape=[len(elements), 1])
        if raw:
            made.raw_input_contents.append(pack(elements))
        else:
            tensor.contents.bytes_contents.extend(elements)
    return made


def caption(image: bytes | None = None, task: bytes = b"<CAPTION>", **fields: Any) -> Any:
    """A ModelInferRequest for a caption of a picture."""
    return message({"INPUT_IMAGE": [image or picture()], "TASK_PROMPT": [task]}, **fields)


@asynccontextmanager
async def listening(
    model: FakeModel, max_bytes: int = 10_000_000
) -> AsyncIterator[tuple[grpc.aio.Channel, Inference]]:
    """Start a server with this model and this limit for messages; yield a channel to it and its inference."""
    inference = Inference(PATIENCE_S)
    inference.model = model
    server = GrpcServer(ModelRepository([inference]), max_bytes, shared=False, budget=roomy())
    port = await server.start("127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, inference
    finally:
        await server.stop(0)
