"""An id for each request, in and out: the client's `X-Request-Id`, or a new one.

Knows headers and the context of a request; nothing about bodies and models. Log lines and spans read the id
where they are written.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from florence.server.http.middleware import HttpMiddleware, with_headers

HEADER: Final = "x-request-id"
_GIVEN: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True)
class CallFacts:
    """What log lines say about their request. `logged`: whether its answer has a line already."""

    request_id: str
    logged: bool = False


_facts: ContextVar[CallFacts | None] = ContextVar("call_facts", default=None)


def call_facts() -> CallFacts | None:
    """The facts of the current request; None outside of one."""
    return _facts.get()


def begin_call(given: str | None) -> str:
    """Begin a request; returns its id. `given`: the client's header; a new id is made where that is missing,
    too long, or has characters that log lines and headers can't hold."""
    request_id = given if given and _GIVEN.fullmatch(given) else uuid.uuid4().hex
    _facts.set(CallFacts(request_id))
    return request_id


class RequestIds(HttpMiddleware):
    """Gives each HTTP request an id, and sends it in the answer's header."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = begin_call(Headers(scope=scope).get(HEADER))
        await self.app(scope, receive, with_headers(send, [(HEADER.encode(), request_id.encode())]))
