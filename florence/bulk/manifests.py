"""Manifests: files of pictures and questions, as CSV, JSON lines or Parquet, read row by row.

The columns are `picture`, and optionally `task`, `text`, `region` and `id`. Adjacent rows of one picture are
one item, so that it is encoded once. Knows nothing about how pictures are read.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any, Final

from florence.answers.columns import load_pyarrow
from florence.bulk.items import PictureItem, is_url, item_named
from florence.bulk.question import FindTask, PictureQuestion, read_region
from florence.bulk.remote import open_file
from florence.errors import FlorenceError, RequestError, quote

COLUMNS: Final = ("picture", "task", "text", "region", "id")
ManifestRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A file of rows. `find`: resolves names in the column `task`. `questions`: those of the run, for rows
    without a task; a row's text or region replaces theirs. `options`: for rows with a task. `ignored`: called
    with the columns that are not used. `max_bytes`: of a picture at a URL."""

    name: str
    find: FindTask
    questions: tuple[PictureQuestion, ...]
    options: Mapping[str, Any]
    ignored: Callable[[str, list[str]], None]
    max_bytes: int

    def items(self) -> Iterator[PictureItem]:
        """The items. Raises `RequestError`, which names the row, for an invalid row."""
        read = _READERS[PurePosixPath(self.name).suffix.lower()]
        with open_file(self.name) as file:
            rows = (
                self._row(number, row)
                for number, row in enumerate(self._known(read(self.name, file)), start=1)
            )
            for _, same in itertools.groupby(rows, key=lambda pair: pair[0]):
                group = list(same)
                (picture, id), _ = group[0]
                item = item_named(self._place(picture), max_bytes=self.max_bytes)
                questions = tuple(question for _, each in group for question in each)
                yield replace(item, picture=picture, id=id, questions=questions)

    def _known(self, rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
        first = next(rows, None)
        if first is None:
            raise RequestError(f"{self.name} has no rows")
        if others := [str(column) for column in first if column not in COLUMNS]:
            self.ignored(self.name, others)
        return itertools.chain([first], rows)

    def _row(
        self, number: int, row: ManifestRow
    ) -> tuple[tuple[str, str | None], tuple[PictureQuestion, ...]]:
        """((picture, id), questions)"""
        try:
            values = {column: _text(row, column) for column in COLUMNS if column != "region"}
            picture, region = values["picture"], read_region(row.get("region"))
            if not picture:
                raise RequestError("it has no picture")
            return (picture, values["id"]), self._questions(values["task"], values["text"], region)
        except FlorenceError as error:
            raise RequestError(f"{self.name}, row {number}: {error}") from None

    def _questions(
        self, task: str | None, text: str | None, region: str | None
    ) -> tuple[PictureQuestion, ...]:
        if task is None:
            if not self.questions:
                raise RequestError("it has no task, and the command names none")
            return tuple(each.with_given(text, region).checked() for each in self.questions)
        return (PictureQuestion(self.find(task), text, region, self.options).checked(),)

    def _place(self, picture: str) -> str:
        """The picture's path; a relative one is joined to the manifest's URL, if it has one."""
        if not is_url(self.name) or is_url(picture) or picture.startswith("/"):
            return picture
        return f"{self.name.rpartition('/')[0]}/{picture}"


def is_manifest(name: str) -> bool:
    """Whether a name is a manifest's."""
    return PurePosixPath(name).suffix.lower() in _READERS


def _text(row: ManifestRow, column: str) -> str | None:
    """A cell; None where it is empty."""
    value = row.get(column)
    if value is None or value == "":
        return None
    if column == "id" and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise RequestError(f"{column} must be a text, got {quote(value)}")
    return value


def _csv(name: str, file: IO[bytes]) -> Iterator[ManifestRow]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        try:
            yield from csv.DictReader(text, strict=True)
        except (csv.Error, UnicodeDecodeError) as error:
            raise RequestError(f"{name} is not CSV in UTF-8: {error}") from None


def _lines(name: str, file: IO[bytes]) -> Iterator[ManifestRow]:
    for line in file:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"a line of {name} is not JSON: {error}: {quote(line)}") from None
        if not isinstance(row, dict):
            raise RequestError(f"a line of {name} is not a JSON object, got {quote(line)}")
        yield row


def _parquet(name: str, file: IO[bytes]) -> Iterator[ManifestRow]:
    load_pyarrow()
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        opened = ParquetFile(file)
    except ArrowInvalid as error:
        raise RequestError(f"{name} is not a Parquet file: {error}") from None
    names = opened.schema_arrow.names
    for batch in opened.iter_batches(1024, columns=[name for name in names if name in COLUMNS]):
        yield from batch.to_pylist()


_READERS: Final[Mapping[str, Callable[[str, IO[bytes]], Iterator[ManifestRow]]]] = {
    ".csv": _csv, ".jsonl": _lines, ".ndjson": _lines, ".parquet": _parquet,
}  # fmt: skip
