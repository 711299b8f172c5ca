"""What the v2 handlers need of an HTTP request: the model and version that its path names, its body, its end.

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
from florence.server.v2.model import MODEL_VERSION, check_model

Handler = Callable[[Request], Awaitable[Response]]


def answering(handler: Handler) -> Handler:
    @wraps(handler)
    async def answered(request: Request) -> Response:
        return await reply_or_error(handler(request))

    return answered


def inference_of(request: Request) -> Inference:
    inference: Inference = request.app.state.inference
    return inference


def version_of(request: Request) -> str:
    """The path's version. One that is no number is, to Triton, a path that is not there."""
    version: str = request.path_params.get("version", MODEL_VERSION)
    if not (version.isascii() and version.isdecimal()):
        raise NotFound("Not Found")
    return version


def check_path(request: Request) -> None:
    """NotFound unless the path names this model and, if any, this version."""
    check_model(request.path_params["model"], version_of(request))


async def left(request: Request) -> None:
    """Ends when the client has left. The body has to be read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
