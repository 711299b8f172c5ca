"""What a gRPC server says about itself: health (`grpc.health.v1`) and reflection, by grpcio's own packages.

Knows gRPC and whether the models are ready. Bytes that are not a message are INVALID_ARGUMENT here too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio
from grpc_reflection.v1alpha import reflection

INFERENCE: Final = "inference.GRPCInferenceService"
LOOK_S: Final = 0.25
"""Seconds between two checks of the models, for clients that watch their health."""


class Health(aio.HealthServicer):  # type: ignore[misc]  # grpcio's packages have no types
    """The health of the server ("") and of each service: SERVING while all models are ready."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        super().__init__()
        self._is_ready = is_ready
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Check the models from now on."""
        self._looking = asyncio.ensure_future(self._look())

    async def stop(self) -> None:
        """Stop checking, and report NOT_SERVING from now on."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        await self.enter_graceful_shutdown()

    async def Check(self, request: Any, context: Any) -> Any:
        """One service's current state; the call ends with NOT_FOUND for an unknown one."""
        await self._refresh()
        return await super().Check(request, context)

    async def _look(self) -> None:
        while True:
            await self._refresh()
            await asyncio.sleep(LOOK_S)

    async def _refresh(self) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if self._is_ready() else states.NOT_SERVING
        for name in ("", INFERENCE, HEALTH):
            if self._server_status.get(name) != status:
                await self.set(name, status)


def add_about(server: Any, health: Health) -> None:
    """Add both services to a server."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((INFERENCE, HEALTH, reflection.SERVICE_NAME), server)


class StrictMessages(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # no types
    """Answers INVALID_ARGUMENT to bytes that are not a message, in place of UNKNOWN and a traceback."""

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        """The handler, made to deserialize its messages itself."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_streaming(handler.stream_stream, read), None, write)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_unary(handler.unary_stream, read), None, write)
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary, read), None, write)


def _unary(behavior: Callable[..., Any], read: Callable[[bytes], Any]) -> Callable[..., Any]:
    async def call(data: bytes, context: Any) -> Any:
        return await behavior(await _read(read, data, context), context)

    return call


def _streaming(behavior: Callable[..., Any], read: Callable[[bytes], Any]) -> Callable[..., Any]:
    async def messages(data: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        async for each in data:
            yield await _read(read, each, context)

    async def call(data: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        async for response in behavior(messages(data, context), context):
            yield response

    return call


async def _read(read: Callable[[bytes], Any], data: bytes, context: Any) -> Any:
    try:
        return read(data)
    except Exception:  # noqa: BLE001  (protobuf's own: not a message)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not valid protobuf")
