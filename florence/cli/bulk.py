"""`florence bulk`: one task on many pictures, into a file that a second run completes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence.cli.asking import Ask, open_asker, read_question
from florence.cli.lines import Question, answer_line, is_unicode, question_of, read_rows, write_failures
from florence.cli.parquet import SUFFIX, check_parquet, lines_beside, pack, read_keys
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
        check_parquet()
    lines = lines_beside(out) if packed else out
    failures_file = arguments.failures or out.with_suffix(".failures.jsonl")
    check_files(out, lines, failures_file)
    question = read_question(arguments)
    pictures = list_pictures(arguments.sources)
    done = read_done(lines, out if packed else None, question)
    missing = [picture for picture in pictures if picture not in done]
    failures: list[Failure] = []
    if missing:
        with open_asker(arguments) as ask:
            failures = ask_all(of_unicode(ask) if packed else ask, missing, question, lines, arguments)
    if packed and lines.exists():
        pack(lines, out)
    write_failures(failures_file, failures)
    before = f", {len(pictures) - len(missing)} were there before" if done else ""
    why = f", {len(failures)} failed: see {failures_file}" if failures else ""
    print(f"florence: {len(missing) - len(failures)} answered{before}{why}", file=sys.stderr)
    return SOME_FAILED if failures else 0


def check_files(out: Path, lines: Path, failures: Path) -> None:
    """RequestError where the answers would be lost, or could not be written; before anything is asked."""
    if failures.resolve() in (out.resolve(), lines.resolve()):
        raise RequestError(f"{failures} can't hold both answers and failures; name another --failures")
    for file in (out, failures):
        if not file.parent.is_dir():
            raise RequestError(f"there is no directory {str(file.parent)!r} for {file.name}")
        if file.is_dir():
            raise RequestError(f"{file} is a directory; name a file in it")


def read_done(lines: Path, parquet: Path | None, question: Question) -> set[str]:
    """The pictures that have an answer of this question already."""
    done = {row["picture"] for row in read_rows(lines) if question_of(row) == question}
    if parquet is not None:
        done |= {picture for picture, asked in read_keys(parquet) if asked == question}
    return done


def of_unicode(ask: Ask) -> Ask:
    """Asks only about pictures whose names a Parquet file can hold."""

    def asked(picture: str) -> TaskAnswer[Any]:
        if not is_unicode(picture):
            raise RequestError("its name is not UTF-8, which a Parquet file can't hold; JSON lines can")
        return ask(picture)

    return asked


def ask_all(
    ask: Ask, pictures: Sequence[str], question: Question, lines: Path, arguments: argparse.Namespace
) -> list[Failure]:
    """Ask about the pictures and append the answers as they come; what failed."""
    bar = False if arguments.no_progress else None
    with (
        lines.open("a", encoding="utf-8") as file,
        PictureMap(ask, pictures, concurrency=arguments.concurrency, progress=bar) as answers,
    ):
        for picture, answer in answers:
            file.write(answer_line(str(picture), question, answer))
            file.flush()
    return answers.failures
