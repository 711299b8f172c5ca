"""The order of middleware: the first in the list gets the requests of every endpoint."""

from __future__ import annotations

from typing import Any

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer  # no public way to set CORS
from fake_model import FakeModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from v2 import INFER, request, roomy, send
from waiting import PATIENCE_S

from florence.server.http.routing import middleware_of
from florence.server.v2.inference import Inference, ModelRepository

DOORS = [
    ("POST", INFER),
    ("GET", "/v2/health/ready"),
    ("POST", "/caption"),
    ("POST", "/analyze"),
    ("GET", "/info"),
    ("GET", "/docs.json"),
    ("GET", "/metrics"),
    ("GET", "/"),
]


class NeedsKey:
    """Middleware that replies with 401 without the right header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (b"x-api-key", b"right") not in scope["headers"]:
            return await JSONResponse({"error": "no key"}, 401)(scope, receive, send)
        await self.app(scope, receive, send)


async def _other(request: Any) -> Response:
    """Reply with the path."""
    return JSONResponse({"door": request.url.path})


@pytest.fixture
def guarded(model: FakeModel) -> Starlette:
    """The service's middleware behind an authentication; routes outside /v2 are stand-ins."""
    inference = Inference(PATIENCE_S)
    inference.model = model
    middleware = middleware_of(ModelRepository([inference]), 100_000, budget=roomy())
    routes = [Route("/{path:path}", _other, methods=["GET", "POST"])]
    return Starlette(routes=routes, middleware=[Middleware(NeedsKey), *middleware])


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_the_first_in_the_list_guards_every_door(guarded: Starlette, method: str, path: str) -> None:
    """Without the key no endpoint answers; with it each does."""
    body = request() if method == "POST" else None
    assert send(guarded, method, path, json=body).status_code == 401
    opened = send(guarded, method, path, json=body, headers={"x-api-key": "right", "accept": "text/html"})
    assert opened.status_code == 200


@pytest.mark.parametrize("path", [INFER, "/caption", "/info"])
def test_the_limit_on_bodies_holds_at_every_door(guarded: Starlette, path: str) -> None:
    """A body over the limit is a 413 with the same words at each endpoint."""
    reply = send(guarded, "POST", path, content=b"x" * 100_001, headers={"x-api-key": "right"})
    assert (reply.status_code, "FLORENCE_MAX_BODY_BYTES" in reply.json()["error"]) == (413, True)


def test_bentomls_errors_have_one_shape(guarded: Starlette) -> None:
    """BentoML's plain-text errors become an object."""
    reply = send(guarded, "DELETE", "/caption", headers={"x-api-key": "right"})
    assert (reply.status_code, reply.json()) == (405, {"error": "Method Not Allowed"})


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_cors_reaches_every_door(model: FakeModel, method: str, path: str) -> None:
    """A preflight is answered and replies are marked at each endpoint, for the setting's origins only."""
    app = _with_origins(model, "https://a.example, https://b.example/")
    asked = {"origin": "https://b.example", "access-control-request-method": method}
    preflight = send(app, "OPTIONS", path, headers={**asked, "access-control-request-headers": "x-any"})
    assert preflight.status_code == 200
    for reply in (preflight, send(app, method, path, headers=asked)):
        assert reply.headers["access-control-allow-origin"] == "https://b.example"
    foreign = send(app, method, path, headers={"origin": "https://c.example"})
    assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_bentomls_own_cors_reaches_every_door(model: FakeModel, method: str, path: str) -> None:
    """BentoML's own CORS options apply at each endpoint, unless the setting overrides them."""
    enabled, options = BentoMLContainer.http.cors.enabled, BentoMLContainer.access_control_options
    before = enabled.get()
    apps = {origin: _with_origins(model, origin) for origin in (None, "https://a.example")}
    try:
        enabled.set(True)
        options.set({"allow_origins": ["https://c.example"]})
        for origin, app in apps.items():
            reply = send(app, method, path, headers={"origin": "https://c.example"})
            assert ("access-control-allow-origin" in reply.headers) == (origin is None)
    finally:
        enabled.set(before)
        options.reset()
    closed = send(_with_origins(model, None), method, path, headers={"origin": "https://c.example"})
    assert "access-control-allow-origin" not in closed.headers


def _with_origins(model: FakeModel, origins: str | None) -> Starlette:
    """The service's middleware with these CORS origins."""
    inference = Inference(PATIENCE_S)
    inference.model = model
    middleware = middleware_of(ModelRepository([inference]), 100_000, origins=origins, budget=roomy())
    return Starlette(routes=[Route("/{path:path}", _other, methods=["GET", "POST"])], middleware=middleware)
