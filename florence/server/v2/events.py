"""A stream of server-sent events over HTTP: the text of an answer as it is generated, then the answer.

Knows ASGI messages; `generate` builds the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from florence.server.replies import reply_or_error

Texts = asyncio.Queue[str | None]
"""Pieces of a text as they are generated; None when there are no more."""

BuildEvent = Callable[[str], bytes]
"""Makes an event of a piece of text."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass each event on at once


async def open_stream(build: BuildEvent, texts: Texts, work: asyncio.Task[Response]) -> Response:
    """The reply to a request for a stream, once its first event is there, or an error's reply in its place.

    work: ends with the reply that holds the last event, after the last piece of text.
    """
    try:
        first = await texts.get()
    except asyncio.CancelledError:
        work.cancel()
        raise
    return await reply_or_error(work) if first is None else _Events(build, first, texts, work)


class _Events(Response):
    """Sends each piece of text as it comes, then what the work ends with: an answer, or an error."""

    media_type = "text/event-stream"

    def __init__(self, build: BuildEvent, first: str, texts: Texts, work: asyncio.Task[Response]) -> None:
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
