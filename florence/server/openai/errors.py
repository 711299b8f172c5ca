"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

Knows statuses and that shape; what went wrong is in `florence.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from florence.errors import FieldError, UnknownModel
from florence.server.http.middleware import HttpMiddleware
from florence.server.replies import error_reply, json_reply

PREFIX: Final = "/v1/"
_CODES: Mapping[int, str] = MappingProxyType({401: "invalid_api_key"})


def error_body(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """The body of an error's reply."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    named = code or _CODES.get(status)
    return {"error": {"message": message, "type": kind, "param": param, "code": named}}


def openai_error(error: Exception) -> Response:
    """The reply for an error. Logs it."""
    plain = error_reply(error)
    message = json.loads(bytes(plain.body))["error"]
    named: tuple[str | None, ...] = ("model", "model_not_found") if isinstance(error, UnknownModel) else ()
    if isinstance(error, FieldError):
        named = error.param, error.code
    body = error_body(message, plain.status_code, *named)
    kept = {name: value for name, value in plain.headers.items() if not name.startswith("content-")}
    return json_reply(body, plain.status_code, kept)


class OpenAIErrors(HttpMiddleware):
    """Gives the errors of other middleware this shape, on the paths of OpenAI's API."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(PREFIX):
            return await self.app(scope, receive, send)
        start: Message | None = None
        body = bytearray()

        async def reshaped(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None or message["type"] != "http.response.body":
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _send_shaped(start, bytes(body), scope, receive, send)

        await self.app(scope, receive, reshaped)


async def _send_shaped(start: Message, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    """The error's reply; one that has the shape already stays as it is."""
    said = json.loads(body or b"{}").get("error", "")
    shaped = {"error": said} if isinstance(said, dict) else error_body(said, start["status"])
    reply = json_reply(shaped, start["status"])
    rewritten = (b"content-length", b"content-type")
    kept = [(name, value) for name, value in start["headers"] if name.lower() not in rewritten]
    reply.raw_headers = kept + reply.raw_headers
    await reply(scope, receive, send)
