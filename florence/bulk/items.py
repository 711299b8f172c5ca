"""Pictures by the names that answers have: files, members of archives, objects at URLs, pages of documents.

A member of an archive has fsspec's name (`tar://0001.jpg::shards/0.tar`), a page RFC 8118's fragment
(`report.pdf#page=3`), and a frame a similar one, so that a name in a file of answers can be opened again.
Knows nothing about what tasks mean, models and services.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from PIL import Image

from florence.bulk.question import PictureQuestion
from florence.errors import ImageError, MissingLibrary, RequestError, quote
from florence.images.decode import open_image
from florence.images.files import read_bounded, read_file
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.seen import View

_PLACE: Final = re.compile(r"(?s)(.+)#(page|frame)=([1-9][0-9]{0,5})")
_PAGES: Final = re.compile(r"([1-9][0-9]{0,5})(-)?([1-9][0-9]{0,5})?")
MAX_BYTES: Final = DEFAULT_LIMITS.max_bytes
"""Bytes of a picture, unless the service or model has another limit."""
Source = str | Callable[[], bytes]
"""A local path, or a function that returns the bytes."""


@dataclass(frozen=True, slots=True)
class PictureItem:
    """One picture. `picture`: its name in answers. `id`: identifies it; None: its name does. `page`, `frame`:
    from 1. `questions`: those of a manifest's rows; empty: those of the run. `held`: bytes of memory that it
    takes while it waits."""

    picture: str
    source: Source
    id: str | None = None
    page: int | None = None
    frame: int | None = None
    questions: tuple[PictureQuestion, ...] = ()
    held: int = 0

    @property
    def place(self) -> dict[str, int]:
        """The frame or page as a request's options."""
        numbers = {"page": self.page, "frame": self.frame}
        return {name: number for name, number in numbers.items() if number is not None}

    def at(self, *, page: int | None = None, frame: int | None = None) -> PictureItem:
        """The item of one page or frame, with that in its name and id."""
        placed = replace(self, page=page, frame=frame)
        mark = "".join(f"#{name}={number}" for name, number in placed.place.items())
        id = None if self.id is None else self.id + mark
        return replace(placed, picture=self.picture + mark, id=id)

    @property
    def key(self) -> str:
        """The id, or else the name: each key is answered once for each task."""
        return self.picture if self.id is None else self.id

    def read(self, max_bytes: int = MAX_BYTES) -> bytes:
        """The file's bytes. `max_bytes`: limit for a local file. Raises `ImageError` where it can't be read,
        `ImageTooLarge` where it has more bytes."""
        try:
            return self.source() if callable(self.source) else read_file(self.source, max_bytes)
        except ImageError:
            raise
        except Exception as error:  # storage libraries raise errors of their own types
            raise ImageError(f"the picture {self.picture!r} can't be read: {error}") from error

    def image(self, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
        """The picture as it is seen, RGB; of the page or frame. Raises `ImageError` and `ImageTooLarge`."""
        return open_image(self.read(limits.max_bytes), limits, View(frame=self.frame, page=self.page))


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of documents to ask about, from 1: `first` to `last`; None: to the end."""

    first: int = 1
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pages:
        """Parse `all`, `3`, `2-5` or `2-`. Raises `RequestError` for any other text."""
        if text == "all":
            return cls()
        found = _PAGES.fullmatch(text)
        if found is None or (found[3] and not found[2]):
            raise RequestError(f"pages are all, 3, 2-5 or 2-, got {quote(text)}")
        first = int(found[1])
        last = int(found[3]) if found[3] else None if found[2] else first
        if last is not None and last < first:
            raise RequestError(f"pages must be in ascending order, got {quote(text)}")
        return cls(first, last)

    def of(self, count: int) -> range:
        """The pages of a document that has `count` pages."""
        return range(self.first, (count if self.last is None else min(count, self.last)) + 1)


def is_url(name: str) -> bool:
    """Whether fsspec opens this name: it has a scheme that is longer than a Windows drive letter."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def is_pattern(name: str) -> bool:
    """Whether the name has wildcards."""
    return any(letter in name for letter in "*?[")


def item_named(name: str, folder: Path = Path(), max_bytes: int = MAX_BYTES) -> PictureItem:
    """The picture of an answer, by its name in the answer. `folder`: the base of relative paths. `max_bytes`:
    bytes of a picture at a URL.

    Raises `MissingLibrary` for a URL, or a member of an archive, without fsspec.
    """
    found = None if (folder / name).is_file() else _PLACE.fullmatch(name)
    file = found[1] if found else name
    page, frame = (int(found[3]) if found and found[2] == kind else None for kind in ("page", "frame"))
    if not is_url(file):
        return PictureItem(name, str(folder / file), page=page, frame=frame)
    head, mark, archive = file.partition("::")
    if mark and not is_url(archive):
        file = f"{head}::{folder / archive}"
    return PictureItem(name, partial(_read_url, file, max_bytes), page=page, frame=frame)


def load_fsspec() -> Any:
    """Import fsspec. Raises `MissingLibrary` where it is not installed."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingLibrary("a URL or a member of an archive", "fsspec", "cloud") from error
    return fsspec


def _read_url(url: str, max_bytes: int) -> bytes:
    # fsspec recognises other compressions by their suffixes
    packed = {"tar": {"compression": "gzip"}} if url.lower().endswith(".tgz") else {}
    with load_fsspec().open(url, "rb", **packed) as file:
        return read_bounded(file, max_bytes)
