"""The service as a process of its own imports it: for `florence serve`, and for the Bento."""

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
