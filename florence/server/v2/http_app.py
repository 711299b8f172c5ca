"""The v2 protocol over HTTP: health, metadata, statistics and inference, a Starlette app.

Knows paths, statuses and headers. Bodies are read and written in `infer_body`; the models are in `inference`.
Requests to a model that is not loaded are answered with 503.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from florence.errors import Closed, NotFound, ProtocolError
from florence.server.http.bodies import read_body
from florence.server.long_strings import Document, parsing_cost
from florence.server.replies import json_reply, off_loop, reply_or_error
from florence.server.v2.http_infer import (
    generate,
    generate_stream,
    infer,
    inference_of,
    repository_of,
    version_of,
)
from florence.server.v2.inference import ModelRepository
from florence.server.v2.model import ServedModel, server_metadata

MODEL_PATH = "/v2/models/{model}"
VERSION_PATH = MODEL_PATH + "/versions/{version}"


def infer_paths(served: ServedModel) -> list[str]:
    """The paths of a model's infer requests, with its version and without."""
    paths = (MODEL_PATH, VERSION_PATH)
    return [path.format(model=served.name, version=served.version) + "/infer" for path in paths]


def v2_paths(served: ServedModel) -> set[str]:
    """All paths of a model, and of the server."""
    return {route.path.format(model=served.name, version=served.version) for route in _routes()}


class V2App(Starlette):
    """The routes under /v2. `max_body_bytes`: of a compressed body, once it is decompressed; bodies as they
    are sent are limited by `BodyLimit`.

    Infer paths, which have nearly all the load, skip the router. Paths are matched as they were sent, without
    percent-decoding, as in Triton.
    """

    def __init__(self, repository: ModelRepository, max_body_bytes: int) -> None:
        super().__init__(routes=_routes(), exception_handlers={HTTPException: _refused})
        self.router.redirect_slashes = False
        self.state.repository = repository
        self.state.max_body_bytes = max_body_bytes
        served = [inference.served for inference in repository.models]
        self._infer_paths = {path: model.name for model in served for path in infer_paths(model)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        if b"%" in scope.get("raw_path", b""):
            scope = {**scope, "path": str(scope["raw_path"], "latin-1").partition("?")[0]}
        name = self._infer_paths.get(scope["path"])
        if name is None or scope["method"] != "POST":
            return await super().__call__(scope, receive, send)
        scope["app"], scope["path_params"] = self, {"model": name}
        reply = await infer(Request(scope, receive))
        await reply(scope, receive, send)


def _routes() -> list[Route]:
    routes = [
        _json_route("/v2", lambda request: server_metadata()),
        _json_route("/v2/health/live", lambda request: {"live": True}),
        _json_route("/v2/health/ready", _ready),
        _json_route("/v2/models/stats", lambda request: repository_of(request).statistics()),
        _route("POST", "/v2/repository/index", _index),
    ]
    for path in (MODEL_PATH, VERSION_PATH):
        routes += [
            _json_route(path, lambda request: inference_of(request).metadata()),
            _json_route(path + "/ready", _model_ready),
            _json_route(path + "/config", lambda request: inference_of(request).config()),
            _json_route(
                path + "/stats",
                lambda request: repository_of(request).statistics(
                    request.path_params["model"], version_of(request)
                ),
            ),
            _route("POST", path + "/infer", infer),
            _route("POST", path + "/generate", generate),
            _route("POST", path + "/generate_stream", generate_stream),
        ]
    return routes


def _json_route(path: str, content: Callable[[Request], object]) -> Route:
    async def answer(request: Request) -> Response:
        return json_reply(content(request))

    return _route("GET", path, answer)


def _route(method: str, path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    async def answer(request: Request) -> Response:
        return await reply_or_error(handler(request))

    route = Route(path, answer, methods=[method])
    route.methods = {method}  # Starlette adds HEAD to GET; to Triton it is a wrong method
    return route


async def _refused(request: Request, error: Exception) -> Response:
    """The error for a path that does not exist, or not with this method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    return json_reply({"error": HTTPStatus(status).phrase}, status, headers)


def _ready(request: Request) -> dict[str, bool]:
    if not repository_of(request).ready:
        raise Closed("the model is not ready")
    return {"ready": True}


def _model_ready(request: Request) -> dict[str, object]:
    try:
        inference = inference_of(request)
    except NotFound as error:
        raise ProtocolError(str(error)) from None  # Triton answers 400 on this path only
    inference.ready_model()
    return {"name": inference.served.name, "ready": True}


async def _index(request: Request) -> Response:
    body = await read_body(request.receive)
    wanted = await off_loop(parsing_cost(body), lambda: Document(body).parse()) if body else {}
    if not isinstance(wanted, dict) or not isinstance(wanted.get("ready", False), bool):
        raise ProtocolError('the body must be empty, or a JSON object such as {"ready": true}')
    return json_reply(repository_of(request).index(only_ready=wanted.get("ready", False)))
