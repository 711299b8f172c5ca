"""Reads the user's JSON files and validates them; an error names the file and the field.

Knows nothing about what the files are for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from florence.errors import RequestError
from florence.types.invalid import reason_of

FormT = TypeVar("FormT")

_PICKLES: Final = (".p", ".pkl", ".pickle")
_PICKLE_BYTE: Final = b"\x80"  # first byte of every pickle since protocol 2; no UTF-8 text begins with it


def read_json(path: Path, form: type[FormT]) -> FormT:
    """Read a JSON file and validate it as `form`. Raises `RequestError`, which names the file and the first
    invalid field; a pickle is refused unopened."""
    return _check(str(path), _parse(str(path), _read(path)), form)


def read_json_lines(path: Path, form: type[FormT]) -> list[FormT]:
    """Read JSON lines and validate each as `form`; blank lines are skipped. Raises `RequestError` as
    `read_json`, and for a file without lines."""
    lines = enumerate(_read(path).split(b"\n"), start=1)
    places = [(f"{path}, line {number}", line) for number, line in lines if line.strip()]
    if not places:
        raise RequestError(f"{path} is empty")
    return [_check(place, _parse(place, line), form) for place, line in places]


def _read(path: Path) -> bytes:
    if path.suffix.lower() not in _PICKLES:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RequestError(f"{path} can't be read: {error.strerror}") from None
        if not content.startswith(_PICKLE_BYTE):
            return content
    raise RequestError(
        f"{path} is a pickle, as RefCOCO's references are. Opening one can run any code, so it was not "
        "opened. Make a COCO file of it, with a `phrase` for each annotation: the documentation has the "
        "program, in evaluate.md"
    )


def _parse(place: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place}: this is not JSON: {error}") from None


def _check(place: str, value: Any, form: type[FormT]) -> FormT:
    try:
        return TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        raise RequestError(f"{place}: {reason_of(dict(error.errors()[0]))}") from None
