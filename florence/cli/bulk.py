"""`florence bulk`: many pictures into a file of JSON lines that a second run completes.

A line holds the picture's path, the text and region that were asked, and the answer. A line is written as
soon as its answer is there; a half line, left by a run that was killed, is cut off and asked again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from florence.cli.asking import Ask, answer_json, open_asker, read_question
from florence.client import Failure, PictureMap
from florence.errors import RequestError

PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SOME_FAILED: Final = 3

Question = tuple[str, str | None, str | None]  # task's token, text, region


def bulk(arguments: argparse.Namespace) -> int:
    """`florence bulk`."""
    question = read_question(arguments)
    pictures = list_pictures(arguments.sources)
    done = read_done(arguments.out, question)
    missing = [picture for picture in pictures if picture not in done]
    failures: list[Failure] = []
    if missing:
        with open_asker(arguments) as ask:
            failures = ask_all(ask, missing, question, arguments)
    file = arguments.failures or arguments.out.with_suffix(".failures.jsonl")
    write_failures(file, failures)
    before = f", {len(pictures) - len(missing)} were there before" if done else ""
    why = f", {len(failures)} failed: see {file}" if failures else ""
    print(f"florence: {len(missing) - len(failures)} answered{before}{why}", file=sys.stderr)
    return SOME_FAILED if failures else 0


def ask_all(
    ask: Ask, pictures: Sequence[str], question: Question, arguments: argparse.Namespace
) -> list[Failure]:
    """Ask about the pictures and append the answers as they come; what failed."""
    _, text, region = question
    bar = sys.stderr.isatty() and not arguments.no_progress
    with (
        arguments.out.open("a", encoding="utf-8") as file,
        PictureMap(ask, pictures, concurrency=arguments.concurrency, progress=bar) as answers,
    ):
        for picture, answer in answers:
            head = json.dumps({"picture": picture, "text": text, "region": region}, ensure_ascii=False)
            file.write(f"{head[:-1]}, {answer_json(answer)[1:]}\n")
            file.flush()
    return answers.failures


def list_pictures(sources: Sequence[str]) -> list[str]:
    """The paths that the sources name, each once, in their order; RequestError where one names nothing."""
    found: dict[str, None] = {}
    for source in sources:
        paths = list(_pictures_of(source))
        if not paths:
            raise RequestError(f"{source!r} names no picture: no file, directory or glob with one")
        found.update(dict.fromkeys(paths))
    return list(found)


def _pictures_of(source: str) -> Iterator[str]:
    path = Path(source)
    if path.is_dir():
        inside = (each for each in sorted(path.rglob("*")) if each.is_file())
        yield from (str(each) for each in inside if each.suffix.lower() in PICTURE_SUFFIXES)
    elif path.is_file() and path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        yield from (line.strip() for line in lines if line.strip())
    elif path.is_file():
        yield source
    elif path.name:
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        yield from (str(each) for each in found if each.is_file())


def read_done(out: Path, question: Question) -> set[str]:
    """The pictures that the file has an answer of this question for; cuts a half line off its end.

    RequestError where the file holds something else: nothing is appended to it then.
    """
    if not out.exists():
        return set()
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done: set[str] = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        row = _read_row(line)
        if row is None:
            raise RequestError(
                f"line {number} of {out} is not an answer of `florence bulk`; name another --out"
            )
        if (row["task"], row.get("text"), row.get("region")) == question:
            done.add(row["picture"])
    if len(whole) < len(data):
        if not data.lstrip().startswith(b'{"picture"'):
            raise RequestError(f"{out} is not a file of `florence bulk`; name another --out")
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return done


def _read_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("picture"), str) and "task" in row else None


def write_failures(file: Path, failures: Sequence[Failure]) -> None:
    """A line for each, in place of those of the last run; no file where nothing failed."""
    if not failures:
        file.unlink(missing_ok=True)
        return
    with file.open("w", encoding="utf-8") as opened:
        for failure in failures:
            row = {"picture": str(failure.picture), "error": str(failure.error)}
            opened.write(json.dumps(row, ensure_ascii=False) + "\n")
