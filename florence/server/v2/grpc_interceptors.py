"""What all gRPC calls pass before their methods: ids and traces, API keys, the form of messages.

Knows methods, metadata and handlers; keys are checked in `server.keys`. The counterpart for HTTP requests is
the middleware that `http.routing` lists.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc

from florence.errors import Unauthorized
from florence.server.keys import ApiKeys
from florence.server.observability.request_ids import HEADER, begin_call
from florence.server.replies import GRPC_CODES, failure_of
from florence.server.v2.grpc_about import HEALTH, INFERENCE

_OPEN_METHODS: Final = frozenset(
    {f"/{HEALTH}/{name}" for name in ("Check", "Watch", "List")}
    | {f"/{INFERENCE}/{name}" for name in ("ServerLive", "ServerReady")}
)
_Prepare = Callable[[Any, Any], Awaitable[Any]]
"""From a call's request (a stream: its requests) and its context to what the method gets."""


def interceptors_of(keys: ApiKeys | None) -> list[Any]:
    """The interceptors of a server, outermost first. `keys`: None: no key is needed."""
    return [CallContext(), *([KeyInterceptor(keys)] if keys else []), StrictMessages()]


class CallContext(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Gives each call an id, and sends it in the metadata before the first response. A call's `traceparent`
    becomes the parent of its spans; over HTTP, BentoML does that. Must be the first interceptor."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        metadata = details.invocation_metadata or ()
        sent = {name: value for name, value in metadata if isinstance(value, str)}
        request_id = begin_call(sent.get(HEADER))
        from opentelemetry import context, propagate

        context.attach(propagate.extract(sent))
        handler = await continuation(details)

        async def tell(request: Any, context: Any) -> Any:
            await context.send_initial_metadata(((HEADER, request_id),))
            return request

        return None if handler is None else _prepared(handler, tell, handler.request_deserializer)


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # as above
    """Refuses calls without one of the keys; health checks, liveness and readiness need none."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if details.method in _OPEN_METHODS:
            return handler
        sent = dict(details.invocation_metadata).get("authorization")
        try:
            self._keys.check(sent if isinstance(sent, str) else None)
        except Unauthorized as error:
            failure = failure_of(error)
        else:
            return handler

        async def refuse(_request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode[GRPC_CODES[failure.status]], failure.message)

        if handler is None:  # an unknown method
            return grpc.unary_unary_rpc_method_handler(refuse)
        return _prepared(handler, refuse)


class StrictMessages(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # as above
    """Answers INVALID_ARGUMENT to bytes that are not a message, in place of UNKNOWN and a traceback."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler

        async def read(data: bytes, context: Any) -> Any:
            try:
                return handler.request_deserializer(data)
            except Exception:  # noqa: BLE001  (protobuf's own: not a message)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not valid protobuf")

        async def read_all(sent: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            async for data in sent:
                yield await read(data, context)

        async def read_stream(sent: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            return read_all(sent, context)

        return _prepared(handler, read_stream if handler.request_streaming else read)


def _prepared(handler: Any, prepare: _Prepare, read: Callable[[bytes], Any] | None = None) -> Any:
    """A handler of the same kind that prepares a call's request first. `read`: deserializes a message; None:
    it stays bytes."""
    write = handler.response_serializer
    if handler.request_streaming:

        async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for response in handler.stream_stream(await prepare(requests, context), context):
                yield response

        return grpc.stream_stream_rpc_method_handler(stream, read, write)

    async def call(request: Any, context: Any) -> Any:  # Health.Watch sends its responses itself
        method = handler.unary_stream if handler.response_streaming else handler.unary_unary
        return await method(await prepare(request, context), context)

    streams = handler.response_streaming
    make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    return make(call, read, write)
