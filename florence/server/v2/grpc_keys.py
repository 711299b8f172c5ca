"""API keys over gRPC: calls without one are refused before their handler.

Knows methods and metadata; keys are checked in `server.keys`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from florence.errors import Unauthorized
from florence.server.keys import ApiKeys

_OPEN_METHODS: Final = frozenset(
    (
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    )
)


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without one of the keys; health checks, liveness and readiness need none."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method not in _OPEN_METHODS:
            sent = dict(details.invocation_metadata).get("authorization")
            try:
                self._keys.check(sent if isinstance(sent, str) else None)
            except Unauthorized as error:
                return _refusing(str(error), await continuation(details))
        return await continuation(details)


def _refusing(reason: str, handler: Any) -> Any:
    """A handler of the same kind that answers UNAUTHENTICATED."""

    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    async def refuse_stream(_requests: Any, context: Any) -> AsyncIterator[Any]:
        await refuse(None, context)
        yield  # a generator, as the handler has to be

    if handler is not None and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse_stream)
    return grpc.unary_unary_rpc_method_handler(refuse)
