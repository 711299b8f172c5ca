"""Reads the answers in a file of `florence bulk`: JSON lines, a Parquet file, or a directory of Parquet
parts.

Knows the format of rows; knows nothing about models, pictures or how the file was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from florence.answers.columns import SUFFIX, read_columns
from florence.errors import RequestError
from florence.types.answer import TaskAnswer
from florence.types.invalid import reason_of
from florence.types.results import Result


class PictureAnswer(TaskAnswer[Result]):
    """A typed answer with its picture and what was asked about it."""

    picture: str = Field(
        description="The picture's name: its path, as it was given to `florence bulk`, or URL."
    )
    id: str | None = Field(None, description="The picture's id, where a manifest gave one.")
    adapter: str | None = Field(None, description="The adapter that was asked for.")
    given_text: str | None = Field(None, alias="text", description="The text of the request.")
    given_region: str | None = Field(None, alias="region", description="The region of the request.")


def read_answers(path: str | os.PathLike[str]) -> Iterator[PictureAnswer]:
    """The answers that `florence bulk` wrote, one at a time, in order. A directory, or a name that ends in
    `.parquet`, is read as Parquet, anything else as JSON lines.

    An incomplete last line, left by a killed run, is skipped. Raises `RequestError` at a line that is not an
    answer, `OSError` for a file that can't be read, `MissingLibrary` for Parquet without pyarrow.
    """
    for answer in read_each(path):
        if isinstance(answer, RequestError):
            raise answer
        yield answer


def read_each(path: str | os.PathLike[str]) -> Iterator[PictureAnswer | RequestError]:
    """As `read_answers`, but a line that is not an answer yields its error, and reading goes on."""
    file = Path(path)
    if file.is_dir() or file.suffix.lower() == SUFFIX:
        yield from map(PictureAnswer.model_validate, read_columns(file))
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield PictureAnswer.model_validate(json.loads(line))
            except (ValueError, RecursionError) as error:  # errors of JSON, UTF-8 and pydantic
                if isinstance(error, ValidationError) or not is_incomplete(line):
                    where = f"line {number} of {os.fspath(path)}"
                    yield RequestError(f"{where} is not an answer of `florence bulk`: {_reason(error)}")


def is_incomplete(line: bytes) -> bool:
    """Whether a line is the beginning of an answer's line, but truncated."""
    begin = b'{"picture"'
    return not line.endswith(b"\n") and line[: len(begin)] == begin[: len(line)]


def _reason(error: ValueError | RecursionError) -> str:
    return reason_of(dict(error.errors()[0])) if isinstance(error, ValidationError) else str(error)
