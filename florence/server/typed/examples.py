"""The examples of the API's document: a picture of a drawn scene, and the demo checkpoint's answers on it.

`tests/api_examples.py` makes the files beside this module, and the tests compare them with the checkpoint.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).parent
PICTURE_PATH: Final = _HERE / "example.jpg"
ANSWERS_PATH: Final = _HERE / "examples.json"


@cache
def picture_text() -> str:
    """The picture in base64, so that an example can be sent as it stands."""
    return base64.b64encode(PICTURE_PATH.read_bytes()).decode("ascii")


@cache
def _examples() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(ANSWERS_PATH.read_text(encoding="utf-8"))
    return content


def example_input(name: str) -> dict[str, Any]:
    """The text or region of an example request, by the endpoint's name; empty for one that has none."""
    return dict(_examples().get(name, {}).get("request", {}))


def example_answer(name: str) -> dict[str, Any] | None:
    """What the demo checkpoint answers to that request; None for an endpoint without an example."""
    answer: dict[str, Any] | None = _examples().get(name, {}).get("answer")
    return answer
