"""Answers as JSON lines: a line for each picture, appended when its answer comes, so that a run can resume.

A line holds the picture's path, the text and region of the request, and the answer. An incomplete last line,
left by a killed run, is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence.answers.reading import is_incomplete
from florence.client import Failure
from florence.errors import RequestError
from florence.types.answer import TaskAnswer

TaskKey = tuple[str, str | None, str | None]
"""What a picture was asked: the task's token, its text, its region."""

_ANSWER_FIELDS = set(TaskAnswer.model_fields)


def answer_json(answer: TaskAnswer[Any]) -> str:
    """One line, the same for a service and a model loaded here."""
    return answer.model_dump_json(include=_ANSWER_FIELDS)


def answer_line(picture: str, key: TaskKey, answer: TaskAnswer[Any]) -> str:
    """The line of one picture, its end included."""
    _, text, region = key
    head = _dumps({"picture": picture, "text": text, "region": region})
    return f"{head[:-1]}, {answer_json(answer)[1:]}\n"


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The answers in a file, which may be absent; cuts an incomplete line off its end.

    RequestError where the file holds something else: nothing is appended to it then.
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
    """The task, text and region of an answer."""
    return row["task"], row.get("text"), row.get("region")


def write_failures(file: Path, failures: Sequence[Failure]) -> None:
    """A line for each, replacing the last run's; no file where nothing failed."""
    if not failures:
        file.unlink(missing_ok=True)
        return
    with file.open("w", encoding="utf-8") as opened:
        for failure in failures:
            row = {"picture": str(failure.picture), "error": str(failure.error)}
            opened.write(_dumps(row) + "\n")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode it: file names are bytes, which need not be text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _dumps(row: dict[str, Any]) -> str:
    """Unescaped letters; escaped where a file name is not UTF-8, so that it reads back as the same name."""
    line = json.dumps(row, ensure_ascii=False)
    return line if is_unicode(line) else json.dumps(row)


def _read_row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if isinstance(row, dict) and isinstance(row.get("picture"), str) and "task" in row:
        return row
    raise RequestError(f"line {number} of {file} is not an answer of `florence bulk`; name another --out")
