"""`generate` and `generate_stream`, Triton's extension of the v2 protocol, over HTTP.

Knows headers, ASGI messages and the order of the steps; `generate` has the bodies and a stream's events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from florence.answers.answer import OriginalAnswer
from florence.errors import ProtocolError
from florence.runtime.streaming import OnText
from florence.server.replies import checkpoint_header, json_reply, off_loop, reply_or_error
from florence.server.v2.generate import (
    build_event,
    build_generate_answer,
    build_text_event,
    is_token_stream,
    parse_generate_request,
)
from florence.server.v2.requests import inference_of, read_body
from florence.server.v2.tensors import InferRequest

_Texts = asyncio.Queue[str | None]
"""Pieces of a text as they are generated; None when there are no more."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass each event on at once


async def generate(request: Request) -> Response:
    """The whole answer as JSON."""
    return await _answer(request, await _read(request), json_reply)


async def generate_stream(request: Request) -> Response:
    """An event for each piece of text if `is_token_stream`, then the answer; else one event with the answer,
    as Triton sends for a model that is not decoupled."""
    infer = await _read(request)
    inference = inference_of(request)
    if not is_token_stream(infer, inference.prompts(inference.ready_model())):
        return await _answer(request, infer, _event_reply)
    texts: _Texts = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_text(text: str) -> None:
        loop.call_soon_threadsafe(texts.put_nowait, text)

    work = asyncio.ensure_future(_answer(request, infer, _event_reply, on_text))
    work.add_done_callback(lambda _: texts.put_nowait(None))
    try:
        first = await texts.get()
    except asyncio.CancelledError:
        work.cancel()
        raise
    if first is None:
        return await reply_or_error(work)
    return _Events(partial(build_text_event, inference_of(request).served, infer.id), first, texts, work)


async def _read(request: Request) -> InferRequest:
    inference = inference_of(request)
    inference.ready_model()
    if request.headers.get("content-encoding", "identity") not in ("", "identity"):
        raise ProtocolError("Unsupported content-encoding, only 'identity' is supported.")
    body = await read_body(request)
    return await off_loop(len(body), parse_generate_request, inference.served, body)


async def _answer(
    request: Request,
    infer: InferRequest,
    reply: Callable[[dict[str, Any]], Response],
    on_text: OnText | None = None,
) -> Response:
    inference = inference_of(request)

    def build(answers: Sequence[OriginalAnswer]) -> Response:
        texts = [answer.text for answer in answers]
        made = reply(build_generate_answer(inference.served, infer.id, texts, answers[0].seed))
        made.headers.update(checkpoint_header(answers[0].checkpoint))
        return made

    return await inference.answer(infer, build, on_text=on_text)


def _event_reply(content: dict[str, Any]) -> Response:
    return Response(build_event(content), media_type="text/event-stream")


class _Events(Response):
    """Sends an event for each piece of text, then one for the reply that the work ends with."""

    media_type = "text/event-stream"

    def __init__(
        self, build: Callable[[str], bytes], first: str, texts: _Texts, work: asyncio.Task[Response]
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._build = build
        self._first = first
        self._texts = texts
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            text: str | None = self._first
            while text is not None:
                await self._send(send, self._build(text), more=True)
                text = await self._texts.get()
            await self._send(send, await self._last_event(), more=False)
        finally:
            self._work.cancel()

    async def _last_event(self) -> bytes:
        reply = await reply_or_error(self._work)
        if reply.status_code == 200:
            return bytes(reply.body)
        return b"data: " + bytes(reply.body) + b"\n\n"

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})
