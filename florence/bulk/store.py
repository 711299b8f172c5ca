"""Stores answers: as JSON lines, one Parquet file, or Parquet parts in a directory.

Knows which pictures and questions are answered already; knows nothing about where answers come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from florence.answers.columns import SUFFIX, load_pyarrow
from florence.bulk.items import PictureItem
from florence.bulk.lines import answer_line, is_unicode, key_of, name_of, read_rows
from florence.bulk.parquet import append_file, lines_beside, read_keys, write_part
from florence.bulk.question import PictureQuestion, TaskKey
from florence.errors import RequestError
from florence.types.answer import TaskAnswer


class AnsweredTasks(dict[TaskKey, set[str]]):
    """For each question's key, the ids or names of the pictures that have an answer."""

    def claim(self, name: str, key: TaskKey) -> bool:
        """Mark a picture's question as answered; returns whether it was not yet."""
        names = self.setdefault(key, set())
        if name in names:
            return False
        names.add(name)
        return True


class Store:
    """A file of answers to which a run adds; a context manager.

    `part_rows`: answers in a part, if `out` is a directory of parts; 0 for a single file. Raises
    `MissingLibrary` for Parquet without pyarrow.
    """

    def __init__(self, out: Path, part_rows: int = 0) -> None:
        self.out, self._part_rows = out, part_rows
        self.packed = bool(part_rows) or out.suffix.lower() == SUFFIX
        if self.packed:
            load_pyarrow()
        self.lines = lines_beside(out) if self.packed else out
        self._opened: IO[str] | None = None
        self._waiting = 0  # lines not yet written as Parquet

    def check(self, failures: Path) -> None:
        """Raise `RequestError` where answers would be lost or could not be written."""
        out = self.out
        if failures.resolve() in (out.resolve(), self.lines.resolve()):
            raise RequestError(f"{failures} can't hold both answers and failures; name another --failures")
        if out.exists() and not (out.is_file() or out.is_dir()):
            raise RequestError(f"{out} must be a regular file, so that a second run can resume from it")
        for file in (out, failures):
            if not file.parent.is_dir():
                raise RequestError(f"there is no directory {str(file.parent)!r} for {file.name}")
        if failures.is_dir():
            raise RequestError(f"{failures} is a directory; name a file in it")
        if self._part_rows and out.is_file():
            raise RequestError(f"{out} is a file, and parts need a directory; name another --out")
        if out.is_dir() and not self._part_rows:
            parts = f"; with --part-rows it holds parts of {SUFFIX[1:]}" if self.packed else ""
            raise RequestError(f"{out} is a directory; name a file in it{parts}")

    def answered(self) -> AnsweredTasks:
        """The answers in the file. Raises `RequestError` for a file with other contents, so that nothing is
        added to it."""
        found = AnsweredTasks()
        for name, key in itertools.chain(self._waiting_keys(), read_keys(self.out) if self.packed else ()):
            found.claim(name, key)
        return found

    def refuses(self, item: PictureItem) -> str:
        """Why answers about this picture can't be stored; "" if they can."""
        if self.packed and not (is_unicode(item.picture) and is_unicode(item.key)):
            return "its name is not UTF-8, which a Parquet file can't hold; JSON lines can"
        return ""

    def add(self, item: PictureItem, question: PictureQuestion, answer: TaskAnswer[Any]) -> None:
        """Store an answer. Once this returns, the answer survives if the process is killed."""
        self.add_line(answer_line(item, question, answer))

    def add_line(self, line: str) -> None:
        """Store a line made by `answer_line`."""
        file = self._open()
        file.write(line)
        file.flush()
        self._waiting += 1
        if self._part_rows and self._waiting >= self._part_rows:
            self._close()
            write_part(self.lines, self.out)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        except OSError:  # a full disk fails here again
            if error is None:
                raise
        if self.packed and error is None and self.lines.exists():
            (write_part if self._part_rows else append_file)(self.lines, self.out)

    def _open(self) -> IO[str]:
        if self._opened is None:
            self._opened = self.lines.open("a", encoding="utf-8")
        return self._opened

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened, self._waiting = None, 0

    def _waiting_keys(self) -> Iterator[tuple[str, TaskKey]]:
        self._waiting = 0
        for row in read_rows(self.lines):
            self._waiting += 1
            yield name_of(row), key_of(row)
