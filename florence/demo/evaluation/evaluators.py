"""The packages of the extra "evaluate", pycocotools and pycocoevalcap, loaded when they are needed.

Both print as they go; `quietly` keeps that from the figures' own lines.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

from florence.errors import MissingLibrary


def evaluator(module: str) -> Any:
    """A module of theirs. MissingLibrary, which says what to install, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary("measuring answers", module.partition(".")[0], "evaluate") from error


def check_evaluators() -> None:
    """Raises MissingLibrary where one is not there: before anything is asked."""
    evaluator("pycocotools.cocoeval")
    evaluator("pycocoevalcap.cider.cider")


def quietly() -> contextlib.AbstractContextManager[object]:
    """What is printed inside is dropped; errors are not."""
    return contextlib.redirect_stdout(io.StringIO())
