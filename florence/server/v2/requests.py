"""What the v2 handlers need of an HTTP request: the model that its path names, and its body.

Knows requests and replies of HTTP; no body's format.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from florence.errors import NotFound
from florence.server.replies import reply_or_error
from florence.server.v2.inference import Inference
from florence.server.v2.repository import ModelRepository

Handler = Callable[[Request], Awaitable[Response]]


def answering(handler: Handler) -> Handler:
    """The handler with errors turned into replies."""

    @wraps(handler)
    async def answered(request: Request) -> Response:
        return await reply_or_error(handler(request))

    return answered


def repository_of(request: Request) -> ModelRepository:
    """The app's models."""
    repository: ModelRepository = request.app.state.repository
    return repository


def inference_of(request: Request) -> Inference:
    """The model that the path names. Raises NotFound for an unknown model or version."""
    return repository_of(request).find(request.path_params["model"], version_of(request))


def version_of(request: Request) -> str:
    """The path's version, "" for none. One that is no number is, to Triton, an unknown path."""
    version: str = request.path_params.get("version", "")
    if version and not (version.isascii() and version.isdecimal()):
        raise NotFound("Not Found")
    return version


async def read_body(request: Request) -> bytes:
    """The request's body, as `request.body()`, with less around it."""
    chunks = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
