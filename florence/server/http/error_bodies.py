"""Bodies of errors in one shape, whichever middleware, route or framework made them.

Knows ASGI messages; nothing about what went wrong.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from http import HTTPStatus

from starlette.types import Message, Receive, Scope, Send

from florence.server.http.middleware import HttpMiddleware
from florence.server.replies import error_reply, json_reply


class ErrorShape(HttpMiddleware):
    """Gives the bodies of errors a shape of its own."""

    @abstractmethod
    def shape(self, body: bytes, status: int) -> object:
        """What JSON is to stand in place of an error's body."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None
        body = bytearray()

        async def shaped(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None or message["type"] != "http.response.body":
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    reply = json_reply(self.shape(bytes(body), start["status"]), start["status"])
                    replaced = (b"content-length", b"content-type")
                    kept = [each for each in start["headers"] if each[0].lower() not in replaced]
                    reply.raw_headers = kept + reply.raw_headers
                    await reply(scope, receive, send)

        await self.app(scope, receive, shaped)


class ErrorBodies(ErrorShape):
    """Makes every error's body {"error": "..."}: the framework's are plain text, lists, or hold more keys.

    An exception becomes an error's reply: without one BentoML would wait until its time limit.
    """

    def shape(self, body: bytes, status: int) -> object:
        return {"error": _error_text(body, status)}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await super().handle(scope, receive, noted)
        except Exception as error:
            if begun:
                raise
            await error_reply(error)(scope, receive, send)


def _error_text(body: bytes, status: int) -> str:
    """The message in an error's body of any shape; the status's standard phrase if it has none."""
    try:
        content = json.loads(body)
    except ValueError:
        content = body.decode("utf-8", "replace").strip()
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if isinstance(content, dict):
        content = content.get("error")
    return content if isinstance(content, str) and content else HTTPStatus(status).phrase
