"""BentoML with one bare route, for comparison with the service in `light_path.py`. Knows nothing about
florence."""

from __future__ import annotations

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def _read(request: Request) -> Response:
    """Read the body and return its length."""
    return Response(str(len(await request.body())))


@bentoml.service(http={"port": 8000})
class Bare:
    """A service with a mounted route that reads the body."""


Bare.mount_asgi_app(Starlette(routes=[Route("/bare", _read, methods=["POST"])]))
bare = Bare
