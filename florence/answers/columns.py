"""Answers as columns of a Parquet file: the schema, derived from the answers' types, and the conversion of
rows.

Knows pyarrow, which comes with the extra "parquet". The column `result` has the fields of all kinds of
results; a row fills those of its own kind. The value of an answer in JSON, which may be anything, is stored
as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from florence.errors import MissingLibrary, RequestError
from florence.types.answer import TaskAnswer
from florence.types.results import RESULT_TYPES
from florence.types.tasks import Kind

SUFFIX: Final = ".parquet"
HEAD: Final = ("picture", "id", "text", "region", "adapter")
"""Columns of a row that are not fields of an answer."""
ROWS: Final = 1024  # rows read at a time
_KINDS: Final = (Kind.TEXT, Kind.TAGS, Kind.JSON, Kind.BOXES, Kind.QUADS, Kind.POLYGONS)


def load_pyarrow() -> Any:
    """Import pyarrow. Raises `MissingLibrary` where it is not installed, without which Parquet can't be read
    or written."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingLibrary("a Parquet file", "pyarrow", "parquet") from error
    return pyarrow


def answer_schema() -> Any:
    """The columns, a `pyarrow.Schema`."""
    pa = load_pyarrow()
    result: dict[str, Any] = {}
    for kind in _KINDS:
        for name, field in RESULT_TYPES[kind].model_fields.items():
            result.setdefault(name, pa.string() if name == "value" else _arrow(pa, field.annotation))
    columns = dict.fromkeys(HEAD, pa.string())
    for name, field in TaskAnswer.model_fields.items():
        columns[name] = pa.struct(result.items()) if name == "result" else _arrow(pa, field.annotation)
    return pa.schema(columns.items())


def to_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of JSON lines to the values of the columns."""
    result = row["result"]
    if result.get("kind") != Kind.JSON:
        return row
    return {**row, "result": {**result, "value": json.dumps(result["value"], ensure_ascii=False)}}


def from_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Convert columns back to the row of JSON lines; null columns are left out."""
    made: dict[str, Any] = _pruned(row)
    if made.get("result", {}).get("kind") == Kind.JSON:
        made["result"]["value"] = json.loads(made["result"].get("value", "null"))
    return made


def part_files(path: Path) -> list[Path]:
    """The files that hold the answers: the file itself, or the finished parts in a directory."""
    return sorted(path.glob(f"[!.]*{SUFFIX}")) if path.is_dir() else [path]


def open_parquet(path: Path) -> Any:
    """Open a Parquet file of answers. Raises `RequestError` for any other file."""
    load_pyarrow()
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise RequestError(f"{path} is not a Parquet file; name another --out: {error}") from None
    if not file.schema_arrow.equals(answer_schema()):
        file.close()
        raise RequestError(f"{path} is not a file of `florence bulk`; name another --out")
    return file


def read_columns(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, or of a directory of parts, in the form of JSON lines."""
    for part in part_files(path):
        with open_parquet(part) as file:
            for batch in file.iter_batches(ROWS):
                yield from map(from_columns, batch.to_pylist())


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pruned(item) for name, item in value.items() if item is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def _arrow(pa: Any, annotation: Any) -> Any:
    """The column type of a field's type."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _arrow(pa, parts[0])
    if origin in (Union, UnionType):
        (only,) = [part for part in parts if part is not NoneType]
        return _arrow(pa, only)
    if origin is Literal:
        return _arrow(pa, type(parts[0]))
    if origin is tuple:
        return pa.list_(_arrow(pa, parts[0]), len(parts))
    if origin is list:
        return pa.list_(_arrow(pa, parts[0]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(
            [(name, _arrow(pa, each.annotation)) for name, each in annotation.model_fields.items()]
        )
    return {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}[annotation]
