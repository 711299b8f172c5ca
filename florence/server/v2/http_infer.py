"""`infer`, `generate` and `generate_stream` of the v2 protocol over HTTP.

Knows headers, ASGI messages and the order of the steps. `infer_body` has the bodies, `inference` asks the
model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from florence.answers.answer import OriginalAnswer
from florence.errors import ClientLeft, NotFound, ProtocolError
from florence.runtime.streaming import OnText
from florence.server.events import EVENTS, build_event, reply_in_events
from florence.server.http.bodies import plain_body, read_body
from florence.server.log import logger
from florence.server.long_strings import parsing_cost
from florence.server.outcomes import log_answer
from florence.server.replies import checkpoint_header, json_bytes, json_reply, off_loop, reply_or_error
from florence.server.v2.compression import PLAIN, choose_encoding, compress
from florence.server.v2.infer_body import (
    build_binary_answer,
    build_generate_answer,
    build_infer_answer,
    build_text_event,
    is_token_stream,
    parse_generate_request,
    parse_infer_request,
)
from florence.server.v2.inference import Inference, ModelRepository
from florence.server.v2.tensors import InferAnswer, InferRequest

HEADER_LENGTH = "Inference-Header-Content-Length"


async def infer(request: Request) -> Response:
    """The reply to an infer request. Writes one line into the log; BentoML writes none for this path."""
    started = time.perf_counter()
    try:
        reply = await reply_or_error(_infer(request, started))
    except asyncio.CancelledError:
        logger.info("%s", _outcome(request.scope, ClientLeft.status, started))
        raise
    if reply.status_code >= 400:
        reason = bytes(reply.body[:500]).decode("ascii")
        logger.info("%s: %s", _outcome(request.scope, reply.status_code, started), reason)
    return reply


async def generate(request: Request) -> Response:
    """The whole answer as JSON."""
    return await _generate(request, await _read_generate(request), json_reply)


async def generate_stream(request: Request) -> Response:
    """An event for each piece of text if `is_token_stream`, then the answer; else one event with the answer,
    as Triton sends for a model that is not decoupled."""
    asked = await _read_generate(request)
    inference = inference_of(request)
    if not is_token_stream(asked, inference.prompts(inference.ready_model())):
        return await _generate(request, asked, _event_reply)
    event = partial(build_text_event, inference.served, asked.id)
    return await reply_in_events(partial(_generate, request, asked, _event_reply), event)


def repository_of(request: Request) -> ModelRepository:
    """The app's models."""
    repository: ModelRepository = request.app.state.repository
    return repository


def inference_of(request: Request) -> Inference:
    """The model that the path names. Raises NotFound for an unknown model or version."""
    return repository_of(request).find(request.path_params["model"], version_of(request))


def version_of(request: Request) -> str:
    """The path's version; "" without one. Raises NotFound for one that is not a number, as an unknown path,
    as in Triton."""
    version: str = request.path_params.get("version", "")
    if version and not (version.isascii() and version.isdecimal()):
        raise NotFound("Not Found")
    return version


async def _infer(request: Request, started: float) -> Response:
    inference = inference_of(request)
    inference.ready_model()
    encoding = request.headers.get("content-encoding", "")
    max_bytes: int = request.app.state.max_body_bytes
    body = await plain_body(request.scope, await read_body(request.receive), encoding, max_bytes)
    length = request.headers.get(HEADER_LENGTH)
    asked = await off_loop(_parsing_cost(body, length), parse_infer_request, inference.served, body, length)

    def log(answer: OriginalAnswer) -> None:
        log_answer(answer, _outcome(request.scope, 200, started) + ": ")

    build = _binary_answer if asked.binary_output else _json_answer
    reply = await inference.answer(asked, build, log=log)
    return await _as_accepted(reply, request.headers.get("accept-encoding", ""))


def _parsing_cost(body: bytes | bytearray, length: str | None) -> int:
    """Of the JSON; packed tensors behind it are not parsed."""
    return int(length) if length and length.isdecimal() and len(length) < 12 else parsing_cost(body)


async def _as_accepted(reply: Response, accepted: str) -> Response:
    """The reply, compressed if the request accepts that."""
    encoding = choose_encoding(accepted)
    if encoding is None:
        return reply
    body = await off_loop(len(reply.body), compress, bytes(reply.body), encoding)
    headers = {name: value for name, value in reply.headers.items() if name != "content-length"}
    return Response(body, reply.status_code, {**headers, "Content-Encoding": encoding})


def _json_answer(answer: InferAnswer) -> Response:
    return json_reply(build_infer_answer(answer), headers=checkpoint_header(answer.checkpoint))


def _binary_answer(answer: InferAnswer) -> Response:
    headers = checkpoint_header(answer.checkpoint)
    body, header_length = build_binary_answer(answer)
    return Response(body, 200, {HEADER_LENGTH: str(header_length), **headers}, "application/octet-stream")


def _outcome(scope: Scope, status: int, started: float) -> str:
    """The client's address, its request, the status and the time it took, for the log."""
    host, port = scope.get("client") or ("-", 0)
    milliseconds = 1000 * (time.perf_counter() - started)
    return f"{host}:{port} {scope['method']} {scope['path']} {status} in {milliseconds:.1f} ms"


async def _read_generate(request: Request) -> InferRequest:
    inference = inference_of(request)
    inference.ready_model()
    if request.headers.get("content-encoding", "") not in PLAIN:
        raise ProtocolError("Unsupported content-encoding, only 'identity' is supported.")
    body = await read_body(request.receive)
    return await off_loop(parsing_cost(body), parse_generate_request, inference.served, body)


async def _generate(
    request: Request, asked: InferRequest, reply: Callable[..., Response], on_text: OnText | None = None
) -> Response:
    def build(answer: InferAnswer) -> Response:
        return reply(build_generate_answer(answer), headers=checkpoint_header(answer.checkpoint))

    return await inference_of(request).answer(asked, build, on_text=on_text)


def _event_reply(content: dict[str, object], headers: dict[str, str]) -> Response:
    return Response(build_event(json_bytes(content)), headers=headers, media_type=EVENTS)
