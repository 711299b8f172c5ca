"""The service for a process of its own: `florence serve` and the Bento import it here, without garbage
collections."""

from __future__ import annotations

from typing import Any

from florence.server.garbage import importing


def __getattr__(name: str) -> Any:
    """`service`, made when `bentoml serve florence.server.entry:service` asks for it."""
    if name != "service":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with importing():
        from florence.server.service import service_of_environment

        return service_of_environment()
