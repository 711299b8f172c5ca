"""Answers as Parquet: the JSON lines' own fields as typed columns.

Knows pyarrow, which comes with the extra "parquet". A Parquet file can't be appended to, so answers are
collected as lines beside it and packed into it at the end of a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from florence.cli.lines import TaskKey, key_of, read_rows
from florence.errors import MissingLibrary, RequestError

SUFFIX: Final = ".parquet"
_ROWS: Final = 1024  # packed at once
_KEY: Final = ("picture", "task", "text", "region")


def load_pyarrow() -> Any:
    """The library; MissingLibrary where it is not installed, and so no Parquet can be written."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingLibrary("a Parquet file", "pyarrow", "parquet") from error
    return pyarrow


def lines_beside(out: Path) -> Path:
    """The file that collects answers until they are packed."""
    return out.with_name(out.name + ".jsonl")


def read_keys(out: Path) -> Iterator[tuple[str, TaskKey]]:
    """Picture and key of each row of the file, which may be absent. RequestError for a foreign file."""
    if not out.exists():
        return
    with _open(out) as file:
        for batch in file.iter_batches(_ROWS, columns=list(_KEY)):
            yield from ((row["picture"], key_of(row)) for row in batch.to_pylist())


def pack(lines: Path, out: Path) -> None:
    """Append the collected lines to the Parquet file's rows, and remove them; all or nothing."""
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetWriter

    known = set(read_keys(out))  # of a run that ended between the last two steps below
    rows = (row for row in read_rows(lines) if (row["picture"], key_of(row)) not in known)
    new, schema = out.with_name(out.name + ".new"), answer_schema()
    with ParquetWriter(new, schema, compression="zstd") as writer:
        if out.exists():
            with _open(out) as old:
                for batch in old.iter_batches(_ROWS):
                    writer.write_batch(batch)
        while chunk := list(itertools.islice(rows, _ROWS)):
            writer.write_batch(RecordBatch.from_pylist(chunk, schema=schema))
    new.replace(out)
    lines.unlink(missing_ok=True)


def answer_schema() -> Any:
    """The columns, a pyarrow.Schema: of `result` only the fields of the row's `kind` are set."""
    pa = load_pyarrow()
    text, number, whole = pa.string(), pa.float64(), pa.int64()

    def things(**fields: Any) -> Any:
        return pa.list_(pa.struct([*fields.items(), ("score", number), ("original_score", number)]))

    result = {
        "kind": text,
        "text": text,
        "score": number,
        "detections": things(label=text, box=pa.list_(number, 4)),
        "regions": things(text=text, quad=pa.list_(number, 8)),
        "instances": things(label=text, polygons=pa.list_(pa.list_(number))),
    }
    columns = {
        **dict.fromkeys(("picture", "text", "region", "task"), text),
        "result": pa.struct(result.items()),
        "image_size": pa.struct([("width", whole), ("height", whole)]),
        "finish_reason": text,
        "usage": pa.struct(
            [("picture_tokens", whole), ("prompt_tokens", whole), ("generated_tokens", whole)]
        ),
        "timings": pa.struct([(f"{part}_s", number) for part in ("queue", "encode", "decode", "total")]),
        "checkpoint": text,
    }
    return pa.schema(columns.items())


def _open(out: Path) -> Any:
    """The file, if it is one of these answers."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(out)
    except ArrowInvalid as error:
        raise RequestError(f"{out} is not a Parquet file; name another --out: {error}") from None
    if not file.schema_arrow.equals(answer_schema()):
        file.close()
        raise RequestError(f"{out} is not a file of `florence bulk`; name another --out")
    return file
