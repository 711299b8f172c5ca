"""PyTriton's clients over HTTP and gRPC: `ask.py URL GRPC PICTURE` prints the results of each as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.client import AsyncioModelClient, FuturesModelClient, ModelClient

MODEL = "florence2"


def caption(answer: Any) -> str:
    """The caption in an answer."""
    (text,) = np.asarray(answer["PARSED_JSON"]).reshape(-1)
    return str(json.loads(text)["<CAPTION>"])


def inputs(picture: bytes) -> dict[str, Any]:
    """The inputs of a request for a caption."""
    values = {"INPUT_IMAGE": picture, "TASK_PROMPT": b"<CAPTION>"}
    return {name: np.array([value], np.object_) for name, value in values.items()}


async def concurrently(url: str, picture: bytes) -> str:
    """The caption from the asyncio client."""
    async with AsyncioModelClient(url, MODEL) as client:
        return caption(await client.infer_sample(**inputs(picture)))


def main(url: str, address: str, picture: bytes) -> None:
    """Ask with each client and print the results."""
    seen: dict[str, Any] = {}
    for name, server in (("HTTP", url), ("gRPC", f"grpc://{address}")):
        with ModelClient(server, MODEL, ensure_model_is_ready=True) as client:
            client.wait_for_model(60)
            seen[f"{name}: rows of one request"] = client.model_config.max_batch_size == 36
            seen[f"{name}: caption"] = caption(
                client.infer_sample(**inputs(picture), parameters={"num_beams": 3})
            )
            rows = {name: value[np.newaxis] for name, value in inputs(picture).items()}
            seen[f"{name}: a batch"] = caption(client.infer_batch(**rows))
        seen[f"{name}: asyncio"] = asyncio.run(concurrently(server, picture))
        with FuturesModelClient(server, MODEL) as futures:
            seen[f"{name}: futures"] = caption(futures.infer_sample(**inputs(picture)).result(60))
    print(json.dumps(seen))


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes())
