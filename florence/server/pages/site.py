"""The pages' routes: `/`, `/ui`, `/docs`, and their files under `/pages/`; a Starlette app.

Knows files and headers. What the pages show and ask comes from the public endpoints, in the browser. No page
may contact another host: the Content-Security-Policy forbids it.
"""

from __future__ import annotations

import html
import mimetypes
from functools import cache
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from florence import __version__
from florence.server.http.error_bodies import ErrorBodies
from florence.server.http.held import HeldBody
from florence.server.http.middleware import HttpMiddleware, with_headers
from florence.server.replies import json_reply
from florence.server.v2.inference import Inference
from florence.server.v2.model import server_metadata

FILES_PATH: Final = "/pages/{name}"
_HERE: Final = Path(__file__).parent
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),  # a browser asks whether a file is still the same
)


class _Headed(HttpMiddleware):
    """Puts the pages' headers on every answer."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, with_headers(send, _HEADERS))


class Site:
    """The pages of a service. `public`: whether `/` names the checkpoint; a service with keys does not.
    `playground`: whether there is one."""

    def __init__(self, inference: Inference, *, public: bool, playground: bool) -> None:
        self._inference, self._public, self._playground = inference, public, playground
        self._template = Template((_HERE / "root.html").read_text(encoding="utf-8"))
        folders = ["shared", "samples", "api", *(["ui"] if playground else [])]
        self._files = {path.name: path for folder in folders for path in (_HERE / folder).glob("*.*")}
        routes = [
            Route("/", self._root),
            Route("/docs", _page("docs.html")),
            Route("/docs/", _to("../docs")),
            Route(FILES_PATH, self._file),
        ]
        if playground:
            routes += [Route("/ui", _page("ui.html")), Route("/ui/", _to("../ui"))]
        self.app = Starlette(routes=routes, middleware=[Middleware(_Headed), Middleware(ErrorBodies)])
        self.app.router.redirect_slashes = False

    async def _root(self, request: Request) -> Response:
        """JSON unless HTML is accepted: for load balancers' probes."""
        links = self._links()
        if "text/html" not in request.headers.get("accept", ""):
            return json_reply({**server_metadata(), **self._facts(), "links": list(links)})
        items = (
            f'<li><a href="{path[1:]}">{path}</a><span>{what}</span></li>' for path, what in links.items()
        )
        facts = {name: html.escape(str(value)) for name, value in self._facts().items()}
        shown = {"state": _STATES[self._inference.ready], "checkpoint": "", **facts}
        page = self._template.substitute(shown, version=__version__, links="\n".join(items))
        return Response(page, media_type="text/html")

    def _facts(self) -> dict[str, Any]:
        """Whether the service is ready, and the checkpoint where `/` is public."""
        ready, model = self._inference.ready, self._inference.model
        if model is None or not self._public:
            return {"ready": ready}
        return {"ready": ready, "checkpoint": model.checkpoint}

    def _links(self) -> dict[str, str]:
        """The main paths, with a description of each."""
        ui = {"/ui": "Playground: try every task on a picture"} if self._playground else {}
        return {
            **ui,
            "/docs": "API page: every endpoint, with examples to send",
            "/docs.json": "The same as an OpenAPI document",
            "/info": "What runs: checkpoint, device, limits, settings",
            "/v2": "The v2 protocol of Triton and KServe",
            "/metrics": "Metrics for Prometheus",
        }

    async def _file(self, request: Request) -> Response:
        path = self._files.get(request.path_params["name"])
        if path is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _held(path).reply(request)


_STATES: Final = {True: "ready", False: "not ready"}


def _page(name: str) -> Any:
    async def page(request: Request) -> Response:
        return _held(_HERE / name).reply(request)

    return page


@cache
def _held(path: Path) -> HeldBody:
    """A file of the package, read at its first request."""
    return HeldBody(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream")


def _to(relative: str) -> Any:
    """A redirect to the page without the slash; relative, since a proxy may have put the service below a
    path."""

    async def redirect(request: Request) -> Response:
        return RedirectResponse(relative)

    return redirect
