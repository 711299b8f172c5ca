"""Microsoft's Florence-2, exact and fast: as a Python library, and as a BentoML service (`florence serve`).

from florence import Florence2
model = Florence2.load("demo")
answer = model.run("street.jpg", "<OD>")

Importing this package imports nothing else; `Florence2` brings torch when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence.answers import parse_answer, read_answers
    from florence.runtime.florence2 import Florence2

__all__ = ["Florence2", "parse_answer", "read_answers"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Florence2":
        try:
            from florence.runtime.florence2 import Florence2
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("florence."):
                told = "Florence2 is in florence2-server; florence2-client alone has no model"
                raise ModuleNotFoundError(told, name=error.name) from error
            raise

        return Florence2
    if name in ("parse_answer", "read_answers"):
        from florence import answers

        return getattr(answers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
