"""Requests of the v2 protocol, and a function that sends them to an app without a server."""

from __future__ import annotations

import asyncio
import base64
from io import BytesIO
from typing import Any

import httpx
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from florence.server.http.bodies import BodyBudget
from florence.server.v2 import infer_body
from florence.server.v2.inference import Inference
from florence.server.v2.model import ServedModel
from florence.server.v2.statistics import Statistics
from florence.server.v2.tensors import InferRequest

SERVED = ServedModel()
INFER = "/v2/models/florence2/infer"


def picture(size: tuple[int, int] = (8, 6)) -> bytes:
    """A green PNG."""
    file = BytesIO()
    Image.new("RGB", size, "green").save(file, "PNG")
    return file.getvalue()


def encoded(data: bytes) -> str:
    """A picture as base64 text for a JSON body."""
    return base64.b64encode(data).decode()


PICTURE = encoded(picture())


def roomy() -> BodyBudget:
    """A budget of bodies that no test exhausts."""
    return BodyBudget(10**9, 60.0)


def parse_infer_request(body: bytes, header_length: str | None = None) -> InferRequest:
    """The request in a body, read as the HTTP route reads it."""
    return infer_body.parse_infer_request(SERVED, body, header_length)


def metrics(statistics: Statistics) -> dict[tuple[str, str], float]:
    """The value of each sample by name and reason, if any, as Prometheus reads them."""
    families = text_string_to_metric_families(statistics.as_metrics())
    samples = [sample for family in families for sample in family.samples]
    assert all(
        sample.labels["model"] == "florence2" and sample.labels["version"] == "1" for sample in samples
    )
    return {(sample.name, sample.labels.get("reason", "")): sample.value for sample in samples}


def pending(inference: Inference) -> float:
    """The number of unanswered requests."""
    return metrics(inference.statistics)["nv_inference_pending_request_count", ""]


def failures(inference: Inference) -> dict[str, float]:
    """The number of failed requests by reason."""
    counted = metrics(inference.statistics).items()
    return {reason: count for (name, reason), count in counted if reason and count}


def send(app: Starlette, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one request over ASGI."""

    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://florence") as client:
            return await client.request(method, path, **options)

    return asyncio.run(sent())


def request(
    images: list[str] | None = None,
    tasks: list[str] | None = None,
    texts: list[str] | None = None,
    **members: Any,
) -> dict[str, Any]:
    """An infer request with one row for each picture."""
    columns = {
        "INPUT_IMAGE": images or [PICTURE],
        "TASK_PROMPT": tasks or ["<CAPTION>"],
        "TEXT_PROMPT": texts,
    }
    inputs = [
        {"name": name, "shape": [len(data), 1], "datatype": "BYTES", "data": data}
        for name, data in columns.items()
        if data is not None
    ]
    return {"inputs": inputs, **members}
