"""Bodies of answers: constant ones are kept as bytes, and large ones are sent in pieces, so that a client
that does not read fills only little of the socket buffers.

Knows ASGI messages and ETags; nothing about what a body holds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from florence.errors import Overloaded
from florence.server.http.bodies import kept_body
from florence.server.http.middleware import HttpMiddleware
from florence.server.replies import error_reply

PIECE: Final = 65_536


class HeldBody:
    """A constant body; 304 for a client that has it already, by its ETag."""

    def __init__(self, body: bytes, media_type: str) -> None:
        self._body, self._media_type = body, media_type
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    def reply(self, request: Request) -> Response:
        """The answer to a request."""
        known = request.headers.get("if-none-match", "")
        etags = [each.strip().removeprefix("W/") for each in known.split(",")]
        if self._etag in etags:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": self._etag})
        return Response(self._body, headers={"ETag": self._etag}, media_type=self._media_type)


async def send_in_pieces(message: Message, send: Send) -> None:
    """Send an ASGI message; a large body as several, each once the client has read most of the one before."""
    body = memoryview(message.get("body", b""))
    more = message.get("more_body", False)
    for start in range(0, max(0, len(body) - PIECE), PIECE):
        await send({**message, "body": bytes(body[start : start + PIECE]), "more_body": True})
    last = (len(body) - 1) // PIECE * PIECE if body else 0
    await send(message if not last else {**message, "body": bytes(body[last:]), "more_body": more})


@dataclass(frozen=True)
class LargeAnswers(HttpMiddleware):
    """Sends large bodies in pieces. Until the client has read it, a large body counts in the budget of
    request bodies; where that has no room, the answer is 503 instead."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None
        refused = False

        async def sized(message: Message) -> None:
            nonlocal start, refused
            if refused:
                return
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                size = len(message.get("body", b""))
                account = kept_body(scope)
                try:
                    if account is not None and size > PIECE:
                        await account.grow(size)
                except Overloaded as error:
                    refused = True
                    return await error_reply(error)(scope, receive, send)
                begun, start = start, None
                await send(begun)
            await send_in_pieces(message, send)

        await self.app(scope, receive, sized)
