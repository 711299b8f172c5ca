"""What a gRPC server says about itself: health (`grpc.health.v1`) and reflection, by grpcio's own packages.

Knows gRPC and whether the models are ready.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME, aio
from grpc_reflection.v1alpha import reflection

HEALTH: Final = str(SERVICE_NAME)
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
