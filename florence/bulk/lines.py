"""Answers as JSON lines: one line for each answer, appended when it arrives, so that a run can resume.

A line has the picture's name, its id if it has one, the question, and the answer. An incomplete last line,
left by a killed run, is cut off. Knows nothing about models and services.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from florence.answers.files import is_incomplete
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion, TaskKey
from florence.errors import FlorenceError, RequestError
from florence.types.answer import TaskAnswer

_ANSWER_FIELDS = set(TaskAnswer.model_fields)


def answer_json(answer: TaskAnswer[Any]) -> str:
    """An answer as JSON, the same from a service and from a model in this process."""
    return answer.model_dump_json(include=_ANSWER_FIELDS)


def answer_line(item: PictureItem, question: PictureQuestion, answer: TaskAnswer[Any]) -> str:
    """The line for one answer, including the line feed."""
    head: dict[str, Any] = {"picture": item.picture, "text": question.text, "region": question.region}
    more = {"id": item.id, "adapter": question.options.get("adapter")}
    head |= {name: value for name, value in more.items() if value is not None}
    return f"{dumps(head)[:-1]}, {answer_json(answer)[1:]}\n"


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The answers in a file, which may not exist; an incomplete last line is cut off.

    Raises `RequestError` where the file has other contents, so that nothing is appended to it.
    """
    if not file.exists():
        return
    whole = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                if not is_incomplete(line):
                    raise RequestError(f"{file} is not a file of `florence bulk`; name another --out")
                break
            yield _read_row(file, number, line)
            whole += len(line)
    if whole < file.stat().st_size:
        with file.open("r+b") as cut:
            cut.truncate(whole)


def key_of(row: dict[str, Any]) -> TaskKey:
    """An answer's key: task, text, region and adapter."""
    return row["task"], row.get("text"), row.get("region"), row.get("adapter")


def name_of(row: dict[str, Any]) -> str:
    """The picture's id, or else its name."""
    id = row.get("id")
    name: str = row["picture"] if id is None else id
    return name


def failure_line(picture: str, task: str, error: str, id: str | None) -> str:
    """The line for one failure, including the line feed."""
    row = {"picture": picture, **({} if id is None else {"id": id}), "task": task, "error": error}
    return dumps(row) + "\n"


class FailureFile:
    """A file with a line for each failure as it happens. Replaces that of the last run; there is no file if
    nothing failed."""

    def __init__(self, file: Path) -> None:
        self.count = 0
        self._path = file
        self._opened: IO[str] | None = None

    def add(self, item: PictureItem, question: PictureQuestion, error: FlorenceError) -> None:
        """Write one failure."""
        self.add_line(failure_line(item.picture, question.task.token, str(error), item.id))

    def add_line(self, line: str) -> None:
        """Write a line made by `failure_line`."""
        if self._opened is None:
            self._opened = self._path.open("w", encoding="utf-8")
        self._opened.write(line)
        self._opened.flush()
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            with nullcontext() if error is None else suppress(OSError):  # a full disk fails here again
                self._opened.close()
        elif error is None:
            self._path.unlink(missing_ok=True)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode the text: file names are bytes and may be invalid."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def dumps(row: dict[str, Any]) -> str:
    """A row as JSON with unescaped non-ASCII letters; escaped if a file name is not UTF-8, so that it can be
    read back."""
    line = json.dumps(row, ensure_ascii=False)
    return line if is_unicode(line) else json.dumps(row)


def _read_row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict) and isinstance(row.get("picture"), str) and "task" in row:
        return row
    raise RequestError(f"line {number} of {file} is not an answer of `florence bulk`; name another --out")
