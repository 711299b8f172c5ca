"""`florence bulk`: one task on many pictures, into a file that a second run completes."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence.cli.asking import Asker, open_asker, read_question
from florence.cli.lines import TaskKey, answer_line, is_unicode, key_of, read_rows, write_failures
from florence.cli.parquet import SUFFIX, lines_beside, load_pyarrow, pack, read_keys
from florence.cli.sources import list_pictures
from florence.client import Failure, PictureMap
from florence.errors import RequestError
from florence.types.answer import TaskAnswer

SOME_FAILED = 3


def bulk(arguments: argparse.Namespace) -> int:
    """`florence bulk`."""
    out: Path = arguments.out
    packed = out.suffix.lower() == SUFFIX
    if packed:
        load_pyarrow()  # refuses before any request
    lines = lines_beside(out) if packed else out
    failures_file = arguments.failures or out.with_suffix(".failures.jsonl")
    check_files(out, lines, failures_file)
    key = read_question(arguments)
    pictures = list_pictures(arguments.sources)
    answered = read_answered(lines, out if packed else None)
    done = answered.pop(key, set())
    if others := sum(map(len, answered.values())):
        tasks = ", ".join(sorted({task for task, _, _ in answered}))
        _tell(f"{out} also holds {others} other answers, of {tasks}; name another --out to keep them apart")
    missing = [picture for picture in pictures if picture not in done]
    failures: list[Failure] = []
    if missing:
        with open_asker(arguments) as ask:
            failures = ask_all(of_unicode(ask) if packed else ask, missing, key, lines, arguments)
    if packed and lines.exists():
        pack(lines, out)
    write_failures(failures_file, failures)
    before = f", {len(pictures) - len(missing)} were there before" if done else ""
    why = f", {len(failures)} failed: see {failures_file}" if failures else ""
    _tell(f"{len(missing) - len(failures)} answered{before}{why}")
    return SOME_FAILED if failures else 0


def check_files(out: Path, lines: Path, failures: Path) -> None:
    """Raises RequestError, before any request, where answers would be lost or could not be written."""
    if failures.resolve() in (out.resolve(), lines.resolve()):
        raise RequestError(f"{failures} can't hold both answers and failures; name another --failures")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise RequestError(f"{out} is no file: a second run reads what is there and goes on; name one")
    for file in (out, failures):
        if not file.parent.is_dir():
            raise RequestError(f"there is no directory {str(file.parent)!r} for {file.name}")
        if file.is_dir():
            raise RequestError(f"{file} is a directory; name a file in it")


def read_answered(lines: Path, parquet: Path | None) -> dict[TaskKey, set[str]]:
    """The pictures that have an answer already, by task, text and region."""
    answered: dict[TaskKey, set[str]] = {}
    rows = ((row["picture"], key_of(row)) for row in read_rows(lines))
    for picture, key in itertools.chain(rows, read_keys(parquet) if parquet else ()):
        answered.setdefault(key, set()).add(picture)
    return answered


def of_unicode(ask: Asker) -> Asker:
    """`ask`, but a picture whose name a Parquet file can't hold fails."""

    def asked(picture: str) -> TaskAnswer[Any]:
        if not is_unicode(picture):
            raise RequestError("its name is not UTF-8, which a Parquet file can't hold; JSON lines can")
        return ask(picture)

    return asked


def ask_all(
    ask: Asker, pictures: Sequence[str], key: TaskKey, lines: Path, arguments: argparse.Namespace
) -> list[Failure]:
    """Ask about the pictures and append the answers as they come; the failures."""
    kept = 0
    bar = False if arguments.no_progress else None
    try:
        with (
            lines.open("a", encoding="utf-8") as file,
            PictureMap(ask, pictures, concurrency=arguments.concurrency, progress=bar) as answers,
        ):
            for picture, answer in answers:
                file.write(answer_line(str(picture), key, answer))
                file.flush()
                kept += 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {kept} answers are kept in {lines}; the same command asks for the other "
            f"{len(pictures) - kept}"
        ) from None
    return answers.failures


def _tell(message: str) -> None:
    print(f"florence: {message}", file=sys.stderr)
