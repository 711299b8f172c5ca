"""`infer` of the v2 protocol over HTTP: JSON or packed tensors, compressed or not.

Knows headers and the order of the steps. `infer_body` has the bodies, `inference` asks the model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from florence.answers.answer import OriginalAnswer
from florence.errors import ClientLeft, UnknownEncoding
from florence.server.outcomes import log_answer
from florence.server.replies import checkpoint_header, error_reply, json_reply, off_loop, reply_or_error
from florence.server.v2.compression import ENCODINGS, choose_encoding, compress, decompress
from florence.server.v2.infer_body import (
    build_binary_answer,
    build_infer_answer,
    read_infer_request,
    split_body,
)
from florence.server.v2.model import ServedModel
from florence.server.v2.requests import inference_of, read_body
from florence.server.v2.tensors import InferRequest

logger = logging.getLogger("florence.service")

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


async def _infer(request: Request, started: float) -> Response:
    inference = inference_of(request)
    inference.ready_model()
    try:
        body = await _plain_body(request)
    except UnknownEncoding as error:
        return error_reply(error, {"Accept-Encoding": ENCODINGS})
    document, tail = split_body(inference.served, body, request.headers.get(HEADER_LENGTH))
    asked = await off_loop(document.size, read_infer_request, inference.served, document, tail)

    def log(answer: OriginalAnswer) -> None:
        log_answer(answer, _outcome(request.scope, 200, started) + ": ")

    reply = await inference.answer(asked, partial(_reply, inference.served, asked), log=log)
    return await _as_accepted(reply, request.headers.get("accept-encoding", ""))


async def _plain_body(request: Request) -> bytes:
    """The request's body, decompressed in a thread, since its plain size is not known in advance."""
    body = await read_body(request)
    encoding = request.headers.get("content-encoding", "")
    if encoding in ("", "identity"):
        return body
    return await run_sync(decompress, body, encoding, request.app.state.max_body_bytes)


async def _as_accepted(reply: Response, accepted: str) -> Response:
    """The reply, compressed if the request accepts that."""
    encoding = choose_encoding(accepted)
    if encoding is None:
        return reply
    body = await off_loop(len(reply.body), compress, bytes(reply.body), encoding)
    headers = {name: value for name, value in reply.headers.items() if name != "content-length"}
    return Response(body, reply.status_code, {**headers, "Content-Encoding": encoding})


def _reply(served: ServedModel, infer: InferRequest, answers: Sequence[OriginalAnswer]) -> Response:
    texts, seed = [answer.text for answer in answers], answers[0].seed
    headers = checkpoint_header(answers[0].checkpoint)
    if not infer.binary_output:
        return json_reply(build_infer_answer(served, infer.id, texts, seed), headers=headers)
    body, header_length = build_binary_answer(served, infer.id, texts, seed)
    return Response(body, 200, {HEADER_LENGTH: str(header_length), **headers}, "application/octet-stream")


def _outcome(scope: Scope, status: int, started: float) -> str:
    """The client's address, its request, the status and the time it took, for the log."""
    host, port = scope.get("client") or ("-", 0)
    milliseconds = 1000 * (time.perf_counter() - started)
    return f"{host}:{port} {scope['method']} {scope['path']} {status} in {milliseconds:.1f} ms"
