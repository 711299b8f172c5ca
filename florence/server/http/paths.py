"""Which paths are health probes, which need no API key or no model, and which have an app of their own.

Knows paths only.
"""

from __future__ import annotations

from typing import Final

HEALTH: Final = ("/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready")
OPEN_PATHS: Final = frozenset((*HEALTH, "/", "/docs.json", "/metrics"))
"""Paths that need no API key."""
WITHOUT_MODEL: Final = OPEN_PATHS - {"/readyz", "/v2/health/ready"}
BENTOML_PATHS: Final = ("/schema.json", "/docs.json", "/healthz", "/livez", "/readyz")


def is_v2(path: str) -> bool:
    """Whether a path is the v2 protocol's."""
    return path == "/v2" or path.startswith("/v2/")


def is_openai(path: str) -> bool:
    """Whether a path is one of OpenAI's API."""
    return path.startswith("/v1/")


def is_page(path: str) -> bool:
    """Whether the pages' app answers a path. It hides BentoML's page at `/` and its files, and BentoML's
    redirects of paths that end with a slash."""
    own = path in ("/", "/ui", "/docs") or path.startswith(("/pages/", "/static_content/", "/assets/"))
    return own or (path.endswith("/") and not path.startswith("/v2/"))
