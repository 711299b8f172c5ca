"""The packages of the extra "evaluate", imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any, Final

from florence.errors import MissingLibrary

EVALUATORS: Final = ("pycocotools.cocoeval", "pycocoevalcap.cider.cider", "torchmetrics")
"""A module of each of them, to be tried before anything is asked."""


def evaluator(module: str) -> Any:
    """A module of the extra "evaluate"; MissingLibrary, which says what to install, without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary("measuring answers", module.partition(".")[0], "evaluate") from error
