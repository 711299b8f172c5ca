"""The v2 protocol over HTTP: health, metadata, statistics and inference of the one model, a Starlette app.

Knows paths, statuses and headers; bodies are `infer_body`'s and `generate`'s business, the model is
`inference`'s. Until that has a model, answers are 503.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, wraps
from typing import Any

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from florence.errors import NotFound, ProtocolError
from florence.protocol.compression import ENCODINGS, UnknownEncoding, choose_encoding, compress, decompress
from florence.protocol.events import Texts, open_stream
from florence.protocol.generate import (
    build_event,
    build_generate_answer,
    is_token_stream,
    parse_generate_request,
)
from florence.protocol.infer_body import (
    build_binary_answer,
    build_infer_answer,
    read_infer_request,
    split_body,
)
from florence.protocol.inference import Inference
from florence.protocol.long_strings import parse_json
from florence.protocol.replies import (
    checkpoint_header,
    error_reply,
    json_reply,
    log_answer,
    off_loop,
    reply_or_error,
)
from florence.protocol.tensors import InferRequest
from florence.protocol.v2_model import (
    MODEL_NAME,
    MODEL_VERSION,
    check_model,
    check_statistics,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
)
from florence.schemas import Answer
from florence.streams import OnText

logger = logging.getLogger("florence.service")

MODEL_PATH = "/v2/models/{model}"
VERSION_PATH = MODEL_PATH + "/versions/{version}"
INFER_PATHS = tuple(
    path.format(model=MODEL_NAME, version=MODEL_VERSION) + "/infer" for path in (MODEL_PATH, VERSION_PATH)
)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
HEADER_LENGTH = "Inference-Header-Content-Length"

Handler = Callable[[Request], Awaitable[Response]]


class _App(Starlette):
    """Starlette, with a short way to the one path that all the load is on, and one line in the log for each
    request there; and with paths as they were sent, since to Triton `%32` is no 2."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        if b"%" in scope.get("raw_path", b""):
            scope = {**scope, "path": str(scope["raw_path"], "latin-1").partition("?")[0]}
        if scope["path"] not in INFER_PATHS or scope["method"] != "POST":
            return await super().__call__(scope, receive, send)
        scope["app"], scope["path_params"] = self, {"model": MODEL_NAME}
        started = time.perf_counter()
        reply = await _infer(Request(scope, receive), started)
        if reply.status_code >= 400:
            reason = bytes(reply.body[:500]).decode("ascii")
            logger.info("%s: %s", _outcome(scope, reply.status_code, started), reason)
        await reply(scope, receive, send)


def create_v2_app(inference: Inference, max_body_bytes: int) -> Starlette:
    """The routes under /v2, answered by this model. max_body_bytes: of a body that came compressed, once
    it is not; compressed ones and others have been measured before."""
    app = _App(routes=_routes())
    app.state.inference = inference
    app.state.max_body_bytes = max_body_bytes
    return app


def _routes() -> list[Route]:
    known = [
        Route("/v2", _server_metadata, methods=["GET"]),
        Route("/v2/health/live", _live, methods=["GET"]),
        Route("/v2/health/ready", _ready, methods=["GET"]),
        Route("/v2/models/stats", _all_statistics, methods=["GET"]),
        Route("/v2/repository/index", _index, methods=["POST"]),
    ]
    for path in (MODEL_PATH, VERSION_PATH):
        known += [
            Route(path, _model_metadata, methods=["GET"]),
            Route(path + "/ready", _model_ready, methods=["GET"]),
            Route(path + "/config", _config, methods=["GET"]),
            Route(path + "/stats", _statistics, methods=["GET"]),
            Route(path + "/infer", _other_infer, methods=["POST"]),
            Route(path + "/generate", _generate, methods=["POST"]),
            Route(path + "/generate_stream", _generate_stream, methods=["POST"]),
        ]

    async def elsewhere(request: Request) -> Response:
        """Starlette would answer in plain text, and send a path with a slash too many elsewhere."""
        if any(route.matches(request.scope)[0] is Match.PARTIAL for route in known):
            return json_reply({"error": "Method Not Allowed"}, 405)
        return json_reply({"error": "Not Found"}, 404)

    paths = ("/", "/v2", "/v2/{path:path}")
    return [*known, *(Route(path, elsewhere, methods=_METHODS) for path in paths)]


def _answering(handler: Handler) -> Handler:
    @wraps(handler)
    async def answered(request: Request) -> Response:
        return await reply_or_error(handler(request))

    return answered


@_answering
async def _live(request: Request) -> Response:
    return Response(media_type="text/plain")


@_answering
async def _ready(request: Request) -> Response:
    _inference(request).ready_model()
    return Response(media_type="text/plain")


@_answering
async def _model_ready(request: Request) -> Response:
    try:
        _check_model(request)
    except NotFound as error:
        raise ProtocolError(str(error)) from None  # Triton answers 400 on this path only
    _inference(request).ready_model()
    return Response(media_type="text/plain")


@_answering
async def _server_metadata(request: Request) -> Response:
    return json_reply(server_metadata())


@_answering
async def _model_metadata(request: Request) -> Response:
    _check_model(request)
    return json_reply(model_metadata())


@_answering
async def _config(request: Request) -> Response:
    _check_model(request)
    return json_reply(model_config())


@_answering
async def _statistics(request: Request) -> Response:
    check_statistics(request.path_params["model"], _version(request))
    return json_reply(_inference(request).statistics.as_dict())


@_answering
async def _all_statistics(request: Request) -> Response:
    return json_reply(_inference(request).statistics.as_dict())


@_answering
async def _index(request: Request) -> Response:
    body = await request.body()
    wanted = await off_loop(len(body), parse_json, body) if body else {}
    if not isinstance(wanted, dict) or not isinstance(wanted.get("ready", False), bool):
        raise ProtocolError('the body must be empty, or a JSON object such as {"ready": true}')
    return json_reply(repository_index(_inference(request).ready, wanted.get("ready", False)))


async def _infer(request: Request, started: float) -> Response:
    """started: a reading of `time.perf_counter()`."""
    return await reply_or_error(_inferred(request, started))


@_answering
async def _other_infer(request: Request) -> Response:
    """A path that names another model or version, or ours in another way."""
    return await _inferred(request, time.perf_counter())


async def _inferred(request: Request, started: float) -> Response:
    _check_model(request)
    inference = _inference(request)
    inference.ready_model()
    try:
        body = await _plain_body(request)
    except UnknownEncoding as error:
        return error_reply(error, {"Accept-Encoding": ENCODINGS})
    document, tail = split_body(body, request.headers.get(HEADER_LENGTH))
    infer = await off_loop(document.size, read_infer_request, document, tail)

    def log(answer: Answer) -> None:
        log_answer(answer, _outcome(request.scope, 200, started) + ": ")

    reply = await inference.answer(infer, partial(_infer_reply, infer), left=partial(_left, request), log=log)
    return await _as_accepted(reply, request.headers.get("accept-encoding", ""))


@_answering
async def _generate(request: Request) -> Response:
    return await _generated(request, await _generate_request(request), json_reply)


@_answering
async def _generate_stream(request: Request) -> Response:
    """Token by token where that can be; else one event with the whole answer, as Triton gives for a model
    that answers once."""
    infer = await _generate_request(request)
    if not is_token_stream(infer):
        return await _generated(request, infer, _event_reply)
    texts: Texts = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_text(text: str) -> None:
        loop.call_soon_threadsafe(texts.put_nowait, text)

    work = asyncio.ensure_future(_generated(request, infer, _event_reply, on_text))
    work.add_done_callback(lambda _: texts.put_nowait(None))
    return await open_stream(infer.id, texts, work)


async def _generate_request(request: Request) -> InferRequest:
    _check_model(request)
    _inference(request).ready_model()
    if request.headers.get("content-encoding", "identity") not in ("", "identity"):
        raise ProtocolError("Unsupported content-encoding, only 'identity' is supported.")
    body = await request.body()
    return await off_loop(len(body), parse_generate_request, body)


async def _generated(
    request: Request,
    infer: InferRequest,
    reply: Callable[[dict[str, Any]], Response],
    on_text: OnText | None = None,
) -> Response:
    def build(answers: Sequence[Answer]) -> Response:
        made = reply(build_generate_answer(infer.id, [answer.florence() for answer in answers]))
        made.headers.update(checkpoint_header(answers[0].checkpoint))
        return made

    return await _inference(request).answer(infer, build, left=partial(_left, request), on_text=on_text)


def _event_reply(content: dict[str, Any]) -> Response:
    return Response(build_event(content), media_type="text/event-stream")


async def _left(request: Request) -> None:
    """Ends when the client has left. The body has to be read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
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


async def _plain_body(request: Request) -> bytes:
    """The request's body, decompressed; in a thread, for nobody knows how much it becomes."""
    body = await _body(request)
    encoding = request.headers.get("content-encoding", "")
    if encoding in ("", "identity"):
        return body
    return await run_sync(decompress, body, encoding, request.app.state.max_body_bytes)


async def _as_accepted(reply: Response, accepted: str) -> Response:
    """The reply, compressed if its client wants that."""
    encoding = choose_encoding(accepted)
    if encoding is None:
        return reply
    body = await off_loop(len(reply.body), compress, bytes(reply.body), encoding)
    headers = {name: value for name, value in reply.headers.items() if name != "content-length"}
    return Response(body, reply.status_code, {**headers, "Content-Encoding": encoding})


def _infer_reply(infer: InferRequest, answers: Sequence[Answer]) -> Response:
    jsons = [answer.florence() for answer in answers]
    headers = checkpoint_header(answers[0].checkpoint)
    if not infer.binary_output:
        return json_reply(build_infer_answer(infer.id, jsons), headers=headers)
    body, header_length = build_binary_answer(infer.id, jsons)
    return Response(body, 200, {HEADER_LENGTH: str(header_length), **headers}, "application/octet-stream")


def _outcome(scope: Scope, status: int, started: float) -> str:
    """Who sent which request, what became of it, and how long that took."""
    host, port = scope.get("client") or ("-", 0)
    milliseconds = 1000 * (time.perf_counter() - started)
    return f"{host}:{port} {scope['method']} {scope['path']} {status} in {milliseconds:.1f} ms"


def _inference(request: Request) -> Inference:
    inference: Inference = request.app.state.inference
    return inference


def _version(request: Request) -> str:
    """The path's version. One that is no number is, to Triton, a path that is not there."""
    version: str = request.path_params.get("version", MODEL_VERSION)
    if not (version.isascii() and version.isdecimal()):
        raise NotFound("Not Found")
    return version


def _check_model(request: Request) -> None:
    """NotFound unless the path names this model and, if any, this version."""
    check_model(request.path_params["model"], _version(request))
