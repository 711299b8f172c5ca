"""Imports the packages of the extra "evaluate" on demand. Knows nothing about measures."""

from __future__ import annotations

import importlib
from typing import Any, Final

from florence.errors import MissingLibrary

EVALUATORS: Final = ("pycocotools.cocoeval", "pycocoevalcap.cider.cider", "torchmetrics")
"""A module of each package, to check that it is installed before anything is asked."""


def evaluator(module: str) -> Any:
    """Import a module of the extra "evaluate". Raises `MissingLibrary`, which says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary("measuring answers", module.partition(".")[0], "evaluate") from error
