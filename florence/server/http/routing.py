"""The order of the HTTP middleware around all routes, and the paths that the service has.

Knows which middleware a request passes, and in which order; nothing about models and settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from florence.server.http.bodies import BodyBudget
from florence.server.http.cors import Cors
from florence.server.http.error_bodies import ErrorBodies
from florence.server.http.held import LargeAnswers
from florence.server.http.middleware import (
    BodyLimit,
    Branch,
    CancelOnDisconnect,
    Decompress,
    NeedsKey,
    WhileLoading,
)
from florence.server.http.paths import BENTOML_PATHS, OPEN_PATHS, is_openai, is_page, is_v2
from florence.server.keys import ApiKeys
from florence.server.observability.request_ids import RequestIds
from florence.server.openai.errors import OpenAIErrors
from florence.server.pages.site import Site
from florence.server.v2.http_app import V2App, v2_paths
from florence.server.v2.inference import ModelRepository
from florence.server.v2.model import ServedModel


def known_paths(built: Any, apps: Iterable[Starlette], served: ServedModel) -> set[str]:
    """The paths that the service answers: its endpoints, those of `apps`, v2's and BentoML's own."""
    own = {route.path for app in apps for route in app.routes if isinstance(route, Route)}
    return {*BENTOML_PATHS, *own, *(api.route for api in built.apis.values()), *v2_paths(served)}


def middleware_of(
    repository: ModelRepository,
    max_body_bytes: int,
    keys: ApiKeys | None = None,
    open_paths: frozenset[str] = OPEN_PATHS,
    *,
    budget: BodyBudget,
    origins: str | None = None,
    site: Site | None = None,
    chat: Starlette | None = None,
) -> list[Middleware]:
    """The middleware of HTTP requests, outermost first. `keys`: None: no key is needed. `site`: the pages,
    which need neither key nor model. `chat`: the routes of OpenAI's API.

    Those before the branch to /v2 apply to all requests: the typed endpoints, /v2, /info, /docs.json,
    /metrics and the health checks; those after it to BentoML's routes only. BentoML's own log and time limit,
    and `CountRequests`, are outside of all these. For gRPC calls, the counterpart are the interceptors that
    `v2.grpc_interceptors` lists.
    """
    return [
        Middleware(RequestIds),
        Middleware(Cors, origins=origins),  # a preflight has no key, and no route of its own
        Middleware(OpenAIErrors),
        Middleware(LargeAnswers),
        *([Middleware(Branch, takes=is_page, branch=site.app)] if site else []),
        *([Middleware(NeedsKey, keys=keys, open_paths=open_paths)] if keys else []),
        Middleware(BodyLimit, max_bytes=max_body_bytes, budget=budget),
        Middleware(CancelOnDisconnect),
        Middleware(WhileLoading, check_loaded=repository.check_loaded),
        Middleware(Branch, takes=is_v2, branch=V2App(repository, max_body_bytes)),
        *([Middleware(Branch, takes=is_openai, branch=Decompress(chat, max_body_bytes))] if chat else []),
        Middleware(ErrorBodies),  # the routes above make error bodies of their own
        Middleware(Decompress, max_bytes=max_body_bytes),  # v2 decodes as Triton does
    ]
