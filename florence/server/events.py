"""An answer's text as server-sent events while it is generated, and the reply at the end.

Knows ASGI messages; nothing about what an event holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from florence.runtime.streaming import OnText
from florence.server.replies import reply_or_error

EVENTS: Final = "text/event-stream"

_Queue = asyncio.Queue[bytes | None]
"""An event for each piece of text as it is generated; None after the last."""


def build_event(data: bytes) -> bytes:
    """One server-sent event. `data`: its text, one line."""
    return b"data: %b\n\n" % data


async def reply_in_events(
    ask: Callable[[OnText], Coroutine[Any, Any, Response]], event: Callable[[str], bytes]
) -> Response:
    """A stream with an event for each piece of text, then the body of `ask`'s reply: events too, or an
    error's JSON. If `ask` returns before there is any text, its reply is returned as it is.

    `ask`: makes the reply, and calls its argument with each piece of text, from another thread. `event`:
    encodes a piece as an event; called in that thread too, in order, before the reply is made.
    """
    events: _Queue = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_text(text: str) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event(text))

    work = asyncio.ensure_future(ask(on_text))
    work.add_done_callback(lambda _: events.put_nowait(None))
    try:
        first = await events.get()
    except asyncio.CancelledError:
        work.cancel()
        raise
    return await reply_or_error(work) if first is None else _Events(first, events, work)


class _Events(Response):
    """Sends an event for each piece of text, then the reply that the work ends with."""

    media_type = EVENTS

    def __init__(self, first: bytes, events: _Queue, work: asyncio.Task[Response]) -> None:
        # so that proxies pass each event on at once
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events, self._work = first, events, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            event: bytes | None = self._first
            while event is not None:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                event = await self._events.get()
            reply = await reply_or_error(self._work)
            last = bytes(reply.body) if reply.status_code == 200 else build_event(bytes(reply.body))
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self._work.cancel()
