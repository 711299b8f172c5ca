"""What is wrong with a value that pydantic refused, in words for a user.

Knows pydantic's errors; nothing about the types that raise them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from florence.errors import quote


def reason_of(
    detail: Mapping[str, Any], known: Iterable[str] = (), noun: str = "field", whole: str = "it"
) -> str:
    """One of `ValidationError.errors()` as a message. `known`: the names that there are, and `noun`, what
    they are names of, for an unknown one. `whole`: what the message calls the value itself."""
    place = _place_of(detail["loc"]) or whole
    if detail["type"] == "extra_forbidden":
        return unknown_name(noun, str(detail["loc"][-1]), known)
    if detail["type"] == "missing":
        return f"{place} is missing"
    return f"{place}: {message_of(detail)}, got {quote(detail['input'])}"


def unknown_name(noun: str, name: str, known: Iterable[str]) -> str:
    """The message about a name that does not exist. `noun`: what it is a name of."""
    return f"unknown {noun} {name[:60]!r}; the {noun}s are {', '.join(known)}"


def _place_of(location: Sequence[str | int]) -> str:
    """Where in a value, such as annotations[3].bbox; "" for the value itself."""
    place = ""
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place


def message_of(detail: Mapping[str, Any]) -> str:
    """What is wrong, without the place and the value."""
    message = str(detail["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
