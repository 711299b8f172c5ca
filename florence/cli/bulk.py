"""`florence bulk`: one task on many pictures, into a file that a second run completes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from florence.cli.asking import Ask, open_asker, read_question
from florence.cli.lines import Question, answer_line, question_of, read_rows, write_failures
from florence.cli.parquet import SUFFIX, check_parquet, lines_beside, pack, read_keys
from florence.cli.sources import list_pictures
from florence.client import Failure, PictureMap

SOME_FAILED = 3


def bulk(arguments: argparse.Namespace) -> int:
    """`florence bulk`."""
    out: Path = arguments.out
    packed = out.suffix.lower() == SUFFIX
    if packed:
        check_parquet()
    lines = lines_beside(out) if packed else out
    question = read_question(arguments)
    pictures = list_pictures(arguments.sources)
    done = read_done(lines, out if packed else None, question)
    missing = [picture for picture in pictures if picture not in done]
    failures: list[Failure] = []
    if missing:
        with open_asker(arguments) as ask:
            failures = ask_all(ask, missing, question, lines, arguments)
    if packed and lines.exists():
        pack(lines, out)
    file = arguments.failures or out.with_suffix(".failures.jsonl")
    write_failures(file, failures)
    before = f", {len(pictures) - len(missing)} were there before" if done else ""
    why = f", {len(failures)} failed: see {file}" if failures else ""
    print(f"florence: {len(missing) - len(failures)} answered{before}{why}", file=sys.stderr)
    return SOME_FAILED if failures else 0


def read_done(lines: Path, parquet: Path | None, question: Question) -> set[str]:
    """The pictures that have an answer of this question already."""
    done = {row["picture"] for row in read_rows(lines) if question_of(row) == question}
    if parquet is not None:
        done |= {picture for picture, asked in read_keys(parquet) if asked == question}
    return done


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
