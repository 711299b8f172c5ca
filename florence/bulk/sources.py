"""Turns a run's sources into items: files, directories, globs, lists, manifests, archives and URLs.

In a local directory a picture is recognised by its first bytes. A file with a picture's suffix and other
contents is included too, so that its failure is reported. In a folder at a URL only the name counts. Knows
nothing about answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from florence.bulk.archives import archive_items, expand_braces, is_archive
from florence.bulk.documents import first_bytes, page_items
from florence.bulk.items import MAX_BYTES, Pages, PictureItem, is_pattern, is_url
from florence.bulk.manifests import Manifest, is_manifest
from florence.bulk.question import FindTask, PictureQuestion
from florence.bulk.remote import is_folder, is_there, list_files, open_file, reader_of
from florence.errors import RequestError
from florence.images.headers import SUFFIXES, is_picture
from florence.images.pdf import is_pdf
from florence.types.tasks import TASKS

APPLE_DOUBLE: Final = b"\0\x05\x16\x07"
"""The first bytes of AppleDouble files, which macOS writes beside files on foreign disks, named ._ and the
file's name."""


class SkippedFiles:
    """Counts skipped files by reason. `kinds`: files that are not pictures, by suffix. `notes`: other
    messages, by subject."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.notes: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        """Lines for people, one for each reason."""
        if self.kinds:
            most = self.kinds.most_common(8)
            kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in most)
            yield f"{self.kinds.total()} files skipped, which are not pictures: {kinds}"
        for reason, count in sorted(self.reasons.items()):
            yield f"{count} skipped: {reason}"
        yield from self.notes.values()


@dataclass(frozen=True)
class Sources:
    """The sources of a run; they can be iterated more than once.

    `names`: as on the command line. `recursive`: whether to include subdirectories. `pages`: of documents;
    None: a document is one picture, and PDFs in directories are skipped. `frame`: of animations. `find`,
    `questions`, `options`: as in `Manifest`. `archives`: a list that collects the names of archives, which
    are then read elsewhere; None: their pictures are items. `max_bytes`: of a picture in an archive or at a
    URL.
    """

    names: Sequence[str]
    recursive: bool = True
    pages: Pages | None = None
    frame: int | None = None
    find: FindTask = TASKS.read
    questions: tuple[PictureQuestion, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    archives: list[str] | None = None
    max_bytes: int = MAX_BYTES

    @property
    def countable(self) -> bool:
        """Whether iterating is cheap: no archive and no document is read."""
        unknown = (is_url(name) and name.endswith("*") for name in self.names)
        return self.pages is None and not any(map(is_archive, self._files())) and not any(unknown)

    @property
    def have_questions(self) -> bool:
        """Whether there is a manifest, which may have questions besides the run's."""
        return any(map(is_manifest, self._files()))

    def items(self) -> Iterator[PictureItem]:
        """All pictures, in the order of the sources. Raises `RequestError` where a source has none."""
        self.skipped.kinds.clear()
        self.skipped.reasons.clear()
        if self.archives is not None:
            self.archives.clear()
        for name in self.names:
            found, before = False, len(self.archives or ())
            for item in self._items_of(name):
                found = True
                yield item if self.frame is None else item.at(frame=self.frame)
            if not found and len(self.archives or ()) == before:
                raise RequestError(
                    f"{name!r} names no picture: it is no file, and no directory or glob with pictures"
                )

    def _files(self) -> Iterator[str]:
        """The names, with globs of archives and manifests expanded."""
        for name in self.names:
            yield name.rstrip("*")
            if is_pattern(name) and not is_url(name) and not Path(name).exists():
                yield from map(str, _matches(Path(name)))

    def _items_of(self, name: str) -> Iterator[PictureItem]:
        for each in expand_braces(name):
            items = self._remote(each) if is_url(each) else self._local(each)
            yield from items if self.pages is None else page_items(items, self.pages, self.skipped.reasons)

    def _local(self, name: str) -> Iterator[PictureItem]:
        path = Path(name)
        if path.is_dir():
            for file in sorted(path.rglob("*") if self.recursive else path.iterdir()):
                if file.is_file() and self._is_picture(file):
                    yield PictureItem(str(file), str(file))
        elif path.is_file():
            yield from self._file(name, PictureItem(name, name))
        elif path.name:
            for each in map(str, _matches(path)):
                yield from self._file(each, PictureItem(each, each))

    def _remote(self, url: str) -> Iterator[PictureItem]:
        folder = is_folder(url)
        if not folder and not is_pattern(url):
            if is_there(url):
                yield from self._file(url, self._object(url))
            return
        for each in list_files(url, recursive=self.recursive):
            suffix = Path(each).suffix.lower()
            wanted = (*SUFFIXES, *([".pdf"] if self.pages else []))
            if suffix in wanted:
                yield self._object(each)
            elif not folder and (is_archive(each) or is_manifest(each) or suffix == ".txt"):
                yield from self._file(each, self._object(each))
            else:
                self._skip(suffix, document=suffix == ".pdf")

    def _file(self, name: str, item: PictureItem) -> Iterator[PictureItem]:
        """The items of a named file: those in a list, a manifest or an archive; else the file itself."""
        if name.lower().endswith(".txt"):
            yield from self._listed(name)
        elif is_manifest(name):
            yield from Manifest(
                name, self.find, self.questions, self.options, self._ignore, self.max_bytes
            ).items()
        elif is_archive(name) and self.archives is not None:
            self.archives.append(name)
        elif is_archive(name):
            documents = self.pages is not None
            yield from archive_items(name, self.skipped.kinds, documents=documents, max_bytes=self.max_bytes)
        else:
            yield item

    def _object(self, url: str) -> PictureItem:
        return PictureItem(url, reader_of(url, self.max_bytes))

    def _listed(self, name: str) -> Iterator[PictureItem]:
        try:
            with open_file(name) as file:
                lines = file.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} is not a list of paths in UTF-8: {error}") from None
        for line in map(str.strip, lines):
            if line and not line.startswith("#"):
                place = f"{name.rpartition('/')[0]}/{line}" if is_url(name) and not is_url(line) else line
                yield replace(self._object(place), picture=line) if is_url(place) else PictureItem(line, line)

    def _is_picture(self, path: Path) -> bool:
        """Whether a file in a directory is a picture; if not, it is counted."""
        first, suffix = first_bytes(str(path)), path.suffix.lower()
        if first is None:
            return True
        document = is_pdf(first)
        named = suffix in SUFFIXES and not first.startswith(APPLE_DOUBLE)
        wanted = self.pages is not None if document else named or is_picture(first)
        if not wanted:
            self._skip(suffix, document=document)
        return wanted

    def _skip(self, suffix: str, *, document: bool) -> None:
        if document:
            self.skipped.reasons["PDFs; --pages asks about their pages"] += 1
        else:
            self.skipped.kinds[suffix] += 1

    def _ignore(self, name: str, columns: list[str]) -> None:
        self.skipped.notes[name] = f"{name} has columns without a meaning here: {', '.join(columns)}"


def _matches(pattern: Path) -> list[Path]:
    try:
        found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
        return sorted(each for each in found if each.is_file())
    except ValueError as error:
        raise RequestError(f"{str(pattern)!r} is not a glob: {error}") from None
