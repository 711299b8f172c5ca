"""Reads a generated text as strict JSON, so that every value read can be written as JSON again.

A model may write anything: NaN, half a surrogate pair, endless brackets. Knows nothing about tasks.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 64
"""Deepest nesting of arrays and objects that is accepted; JSON writers have limits too."""
_TOO_DEEP: Final = f"more than {MAX_DEPTH} arrays and objects stand inside one another"


def read_json(text: str) -> tuple[Any, str | None]:
    """The value and None; or None and the reason why the text is not JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, "a string holds half of a surrogate pair"
    except ValueError as error:
        return None, str(error)
    except RecursionError:
        return None, _TOO_DEEP
    return (value, None) if _depth(value) <= MAX_DEPTH else (None, _TOO_DEEP)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number[:60]} is too large for a number")
    return value


def _depth(value: Any) -> int:
    """The depth of nested arrays and objects."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
