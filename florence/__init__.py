"""Microsoft's Florence-2, exact and fast: as a Python library, and as a BentoML service (`service.py`).

from florence import Florence2
model = Florence2.load("demo")
answer = model.run("street.jpg", "<OD>")

Importing this package imports nothing else; `Florence2` brings torch when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence.answers import parse_answer
    from florence.runtime.florence2 import Florence2

__all__ = ["Florence2", "parse_answer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Florence2":
        from florence.runtime.florence2 import Florence2

        return Florence2
    if name == "parse_answer":
        from florence.answers import parse_answer

        return parse_answer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
