"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

Knows statuses and that shape; what went wrong is in `florence.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from florence.errors import FieldError, UnknownModel
from florence.server.http.error_bodies import ErrorShape
from florence.server.http.paths import is_openai
from florence.server.replies import error_reply, failure_of, json_reply

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
    named: tuple[str | None, ...] = ("model", "model_not_found") if isinstance(error, UnknownModel) else ()
    if isinstance(error, FieldError):
        named = error.param, error.code
    body = error_body(failure_of(error).message, plain.status_code, *named)
    kept = {name: value for name, value in plain.headers.items() if not name.startswith("content-")}
    return json_reply(body, plain.status_code, kept)


class OpenAIErrors(ErrorShape):
    """Gives the errors of other middleware this shape, on the paths of OpenAI's API."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = super().handle if is_openai(scope["path"]) else self.app
        await handle(scope, receive, send)

    def shape(self, body: bytes, status: int) -> object:
        """The error's body; one that has the shape already stays as it is."""
        said = json.loads(body or b"{}").get("error", "")
        return {"error": said} if isinstance(said, dict) else error_body(said, status)
