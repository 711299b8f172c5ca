"""Pictures as a command line names them: files, directories, globs and lists.

In a directory a picture is told by its first bytes, as everywhere. A file that is named like one and has
other bytes is asked about too, so that its failure is told.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from florence.errors import RequestError
from florence.images.headers import FIRST_BYTES, is_picture

PICTURE_SUFFIXES: Final = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
APPLE_DOUBLE: Final = b"\0\x05\x16\x07"
"""The first bytes of what macOS writes beside files on other systems' disks, as ._ and the file's name."""


def list_pictures(sources: Sequence[str]) -> list[str]:
    """The paths that the sources name, each once, in their order; RequestError where one names no picture.

    Says on stderr how many other files the directories hold, by their suffix.
    """
    found: dict[str, None] = {}
    others: Counter[str] = Counter()
    for source in sources:
        paths = list(_pictures_of(source, others))
        if not paths:
            raise RequestError(f"{source!r} names no picture: no file, directory or glob with one")
        found.update(dict.fromkeys(paths))
    if others:
        kinds = ", ".join(
            f"{count} {suffix or 'without a suffix'}" for suffix, count in others.most_common(8)
        )
        print(f"florence: {others.total()} files are no pictures and passed over: {kinds}", file=sys.stderr)
    return list(found)


def _pictures_of(source: str, others: Counter[str]) -> Iterator[str]:
    path = Path(source)
    if path.is_dir():
        for each in sorted(path.rglob("*")):
            if each.is_file() and _is_picture(each):
                yield str(each)
            elif each.is_file():
                others[each.suffix.lower()] += 1
    elif path.is_file() and path.suffix.lower() == ".txt":
        yield from _listed(path)
    elif path.is_file():
        yield source
    elif path.name:
        yield from (str(each) for each in _matches(path) if each.is_file())


def _is_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.read(FIRST_BYTES)
    except OSError:
        return True  # asking about it says why it can't be read
    named = path.suffix.lower() in PICTURE_SUFFIXES and not first.startswith(APPLE_DOUBLE)
    return named or is_picture(first)


def _matches(pattern: Path) -> list[Path]:
    try:
        return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError as error:
        raise RequestError(f"{str(pattern)!r} is no glob: {error}") from None


def _listed(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is no list of paths in UTF-8: {error}") from None
    paths = (line.strip() for line in lines)
    yield from (path for path in paths if path and not path.startswith("#"))
