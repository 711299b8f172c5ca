"""`florence serve`: becomes `bentoml serve` where service.py is."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from florence.errors import SettingsError

_DEMO: Final = "demo"  # as in florence.checkpoint.hub, whose import takes long


def serve(arguments: argparse.Namespace) -> NoReturn:
    """Does not return: this process becomes the server, so that signals reach it."""
    directory = Path(__file__).resolve().parents[2]
    if not (directory / "service.py").is_file():
        raise SettingsError(
            f"there is no service.py in {directory}: `florence serve` runs in a checkout; "
            f"where a Bento was built, `bentoml serve florence2:latest` runs it"
        )
    model = arguments.model or os.environ.get("FLORENCE_MODEL")
    if model:
        os.environ["FLORENCE_MODEL"] = from_anywhere(model)
    os.chdir(directory)
    command = ["-m", "bentoml", "serve", "service:service"]
    address = ["--host", arguments.host, "--port", str(arguments.port)]
    os.execv(sys.executable, [sys.executable, *command, *address])


def from_anywhere(model: str) -> str:
    """The checkpoint's name such that it holds in another directory too; as it is, where it is no path."""
    return str(Path(model).resolve()) if model != _DEMO and Path(model).is_dir() else model
