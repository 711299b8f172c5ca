"""Files of answers as Parquet: one file, or parts in a directory, written under another name and renamed when
complete.

A Parquet file can't be appended to, so answers are collected as lines beside it. A single file is rewritten
with them at the end of a run; a directory gets a new part whenever enough have been collected. Knows nothing
about where answers come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from florence.answers.columns import (
    ROWS,
    SUFFIX,
    answer_schema,
    open_parquet,
    part_files,
    to_columns,
)
from florence.bulk.lines import key_of, name_of, read_rows
from florence.bulk.question import TaskKey

_KEY = ("picture", "id", "task", "text", "region", "adapter")


def lines_beside(out: Path) -> Path:
    """The file that collects answers until they are written as Parquet."""
    return out.with_name(out.name + ".jsonl")


def read_keys(out: Path) -> Iterator[tuple[str, TaskKey]]:
    """Picture and key of each row of a file or of parts, which may not exist. Raises `RequestError` for files
    with other contents."""
    if not out.exists():
        return
    for part in part_files(out):
        with open_parquet(part) as file:
            for batch in file.iter_batches(ROWS, columns=list(_KEY)):
                yield from ((name_of(row), key_of(row)) for row in batch.to_pylist())


def append_file(lines: Path, out: Path) -> None:
    """Add the collected lines to the file's rows, and remove them; atomic."""
    from pyarrow.parquet import ParquetWriter

    rows = _not_in(read_rows(lines), out)
    new, schema = out.with_name(out.name + ".new"), answer_schema()
    with ParquetWriter(new, schema, compression="zstd") as writer:
        if out.exists():
            with open_parquet(out) as old:
                for batch in old.iter_batches(ROWS):
                    writer.write_batch(batch)
        _write(writer, rows, schema)
    new.replace(out)
    lines.unlink(missing_ok=True)


def write_part(lines: Path, folder: Path) -> None:
    """Write the collected lines as the folder's next part, and remove them; atomic."""
    from pyarrow.parquet import ParquetWriter

    folder.mkdir(exist_ok=True)
    parts = part_files(folder)
    rows = _not_in(read_rows(lines), parts[-1]) if parts else read_rows(lines)
    first = next(iter(rows), None)
    if first is not None:
        schema = answer_schema()
        new, part = part_paths(folder, next_part(folder))
        with ParquetWriter(new, schema, compression="zstd") as writer:
            _write(writer, itertools.chain([first], rows), schema)
        new.replace(part)
    lines.unlink(missing_ok=True)


def next_part(folder: Path) -> int:
    """The number of the folder's next part."""
    parts = part_files(folder)
    return int(parts[-1].stem.rpartition("-")[2]) + 1 if parts else 0


def part_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """Where a part is written, and where it is once it is complete; names sort in the order of parts."""
    name = f"part-{number:06}"
    return folder / f".{name}.new", folder / f"{name}{SUFFIX}"


def _not_in(rows: Iterator[dict[str, Any]], out: Path) -> Iterator[dict[str, Any]]:
    """The rows without those that are already in `out`, because a run was killed before it removed the
    lines."""
    known = set(read_keys(out))
    return (row for row in rows if (name_of(row), key_of(row)) not in known)


def _write(writer: Any, rows: Iterable[dict[str, Any]], schema: Any) -> None:
    from pyarrow import RecordBatch

    rows = map(to_columns, rows)
    while chunk := list(itertools.islice(rows, ROWS)):
        writer.write_batch(RecordBatch.from_pylist(chunk, schema=schema))
