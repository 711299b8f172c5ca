"""Which pages of other origins may call the service from a browser: as `FLORENCE_CORS_ORIGINS` says, or as
BentoML's own configuration does, whose middleware is inside of ours and leaves out /v2, /v1 and the pages.

Knows nothing about paths and requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Cors:
    """CORS for every path. `origins`: separated by commas, or `*`; their pages may use any method and header.
    None: BentoML's `http.cors` applies, which is read here, when a worker builds its middleware."""

    def __init__(self, app: ASGIApp, origins: str | None) -> None:
        options = _options(origins)
        self._app = app if options is None else CORSMiddleware(app, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _options(origins: str | None) -> Mapping[str, Any] | None:
    """The options of `CORSMiddleware`; None where no other origin may call."""
    if origins:
        return {
            "allow_origins": [origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()],
            "allow_methods": ["*"],
            "allow_headers": ["*"],
            "expose_headers": ["*"],
            "max_age": 600,
        }
    if not BentoMLContainer.http.cors.enabled.get():
        return None
    options: Mapping[str, Any] = BentoMLContainer.access_control_options.get()
    return options
