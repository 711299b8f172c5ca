"""Names of settings: which variables belong to other programs, and what an unknown name may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from florence.errors import quote
from florence.types.environment import CLIENT_KEY, PREFIX
from florence.types.invalid import message_of

# Kubernetes puts the address of a Service called `florence` into each pod's environment under these names.
_KUBERNETES = re.compile(r"FLORENCE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_KINDS: Final = {"bool_parsing": "true or false", "float_parsing": "a number", "int_parsing": "an integer"}
"""pydantic's type of an error -> what the text of a variable must be."""


def is_foreign(name: str, value: str) -> bool:
    """Whether a variable with the prefix is the client's or Kubernetes'."""
    if name.upper() == CLIENT_KEY or _KUBERNETES.fullmatch(name):
        return True
    return name.endswith("_PORT") and "://" in value


def suggest(name: str, known: Iterable[str]) -> str:
    """The message about an unknown name, with the closest known one. `known`: names in the same form:
    variables or arguments."""
    by_ending = {_ending(each): each for each in known}
    close = difflib.get_close_matches(_ending(name), by_ending, n=1)
    names = ", ".join(by_ending.values())
    hint = f"did you mean {by_ending[close[0]]}?" if close else f"the settings are {names}"
    return f"unknown setting {name[:60]}: {hint}"


def explain(detail: Mapping[str, Any], known: Iterable[str]) -> str:
    """One pydantic error as `FLORENCE_X: what it must be, got what it is`. `known`: names of the fields."""
    name = str(detail["loc"][0]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden":
        return suggest(name, known)
    message = _KINDS.get(detail["type"]) or message_of(detail).removeprefix("input should be ")
    return f"{PREFIX}{name.upper()}: {message}, got {quote(detail['input'])}"


def _ending(name: str) -> str:
    return name.upper().replace("-", "_").removeprefix(PREFIX)
