"""Pictures as a command line names them: files, directories, globs and lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from florence.errors import RequestError

PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def list_pictures(sources: Sequence[str]) -> list[str]:
    """The paths that the sources name, each once, in their order; RequestError where one names no picture."""
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
        yield from _listed(path)
    elif path.is_file():
        yield source
    elif path.name:
        yield from (str(each) for each in _matches(path) if each.is_file())


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
