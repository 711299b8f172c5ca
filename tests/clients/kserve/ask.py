"""KServe's clients over REST and gRPC: `ask.py URL GRPC PICTURE` prints the results of each as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

MODEL = "florence2"


def request(picture: bytes, task: str = "<CAPTION>") -> InferRequest:
    """A request with the picture as base64 text."""
    inputs = [
        InferInput("INPUT_IMAGE", [1, 1], "BYTES", data=[base64.b64encode(picture).decode()]),
        InferInput("TASK_PROMPT", [1, 1], "BYTES", data=[task]),
    ]
    return InferRequest(MODEL, inputs, request_id="k")


def grpc_request(picture: bytes) -> InferRequest:
    """A request with the picture as base64 bytes."""
    inputs = [
        InferInput("INPUT_IMAGE", [1, 1], "BYTES", data=[base64.b64encode(picture)]),
        InferInput("TASK_PROMPT", [1, 1], "BYTES", data=[b"<CAPTION>"]),
    ]
    return InferRequest(MODEL, inputs, request_id="k")


def caption(answer: Any) -> str:
    """The caption in an answer."""
    (output,) = answer.outputs
    (text,) = output.as_numpy().reshape(-1)
    return str(json.loads(text)["<CAPTION>"])


async def over_rest(url: str, picture: bytes) -> dict[str, Any]:
    """The results of the REST client."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, retries=0))
    try:
        seen = {
            "REST: live": await client.is_server_live(url),
            "REST: ready": await client.is_server_ready(url),
            "REST: model ready": await client.is_model_ready(url, MODEL),
            "REST: caption": caption(await client.infer(url, request(picture), model_name=MODEL)),
        }
        try:
            await client.infer(url, request(picture, "<NOPE>"), model_name=MODEL)
        except httpx.HTTPStatusError as error:
            seen["REST: an error's words"] = "unknown task" in str(error)
        return seen
    finally:
        await client.close()


async def over_grpc(address: str, picture: bytes) -> dict[str, Any]:
    """The results of the gRPC client."""
    async with InferenceGRPCClient(address, timeout=60) as client:
        return {
            "gRPC: live": await client.is_server_live(),
            "gRPC: ready": await client.is_server_ready(),
            "gRPC: model ready": await client.is_model_ready(MODEL),
            "gRPC: caption": caption(await client.infer(grpc_request(picture))),
        }


async def main(url: str, address: str, picture: bytes) -> None:
    """Ask with both clients and print the results."""
    print(json.dumps(await over_rest(url, picture) | await over_grpc(address, picture)))


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes()))
