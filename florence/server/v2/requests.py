"""Reads an HTTP request for the v2 handlers: the model that its path names, and its body as bytes."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from florence.errors import NotFound
from florence.server.v2.inference import Inference
from florence.server.v2.repository import ModelRepository


def repository_of(request: Request) -> ModelRepository:
    """The app's models."""
    repository: ModelRepository = request.app.state.repository
    return repository


def inference_of(request: Request) -> Inference:
    """The model that the path names. Raises NotFound for an unknown model or version."""
    return repository_of(request).find(request.path_params["model"], version_of(request))


def version_of(request: Request) -> str:
    """The path's version, "" for none. One that is no number is an unknown path, as in Triton."""
    version: str = request.path_params.get("version", "")
    if version and not (version.isascii() and version.isdecimal()):
        raise NotFound("Not Found")
    return version


async def read_body(request: Request) -> bytes:
    """The request's body, as `request.body()`, with less overhead."""
    chunks = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
