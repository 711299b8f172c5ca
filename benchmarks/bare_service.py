"""BentoML with one bare route, which `light_path.py` compares the service with. Knows nothing of florence."""

from __future__ import annotations

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def _read(request: Request) -> Response:
    """All that the route does."""
    return Response(str(len(await request.body())))


@bentoml.service(http={"port": 8000})
class Bare:
    """With a mounted route that reads the body."""


Bare.mount_asgi_app(Starlette(routes=[Route("/bare", _read, methods=["POST"])]))
bare = Bare
