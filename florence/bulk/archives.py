"""Pictures in tar archives, also compressed ones and at URLs, such as WebDataset's shards.

An archive is read once from beginning to end. Of a WebDataset sample only the picture is used; of other
members only the first bytes are read. Knows nothing about tasks.
"""

from __future__ import annotations

import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from tarfile import InvalidHeaderError, ReadError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, Final, Self

from florence.bulk.items import PictureItem
from florence.bulk.remote import open_file
from florence.errors import RequestError, quote
from florence.images.files import too_large
from florence.images.headers import is_picture
from florence.images.pdf import MARK_WITHIN, is_pdf

SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_NAMES: Final = 10**6
"""Most names that one name with braces may stand for."""
_BRACES: Final = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


class _Member(tarfile.TarInfo):
    """A member that requires a complete header: tarfile would take a truncated one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except (TruncatedHeaderError, InvalidHeaderError) as error:
            raise ReadError(f"at byte {tarfile.offset}: {error}") from error


def is_archive(name: str) -> bool:
    """Whether a name is an archive's."""
    return name.lower().endswith(SUFFIXES)


def expand_braces(name: str) -> list[str]:
    """The names that WebDataset's `shard-{000..099}.tar` stands for; for other names the name itself. Raises
    `RequestError` for more than `MAX_NAMES`."""
    counts = (max(int(last) - int(first) + 1, 0) for first, last in _BRACES.findall(name))
    if math.prod(counts) > MAX_NAMES:
        raise RequestError(f"{quote(name)} stands for more than {MAX_NAMES} names; give a part at a time")
    found = _BRACES.search(name)
    if found is None:
        return [name]
    head, width, tail = name[: found.start()], len(found[1]), name[found.end() :]
    written = (f"{head}{number:0{width}}{tail}" for number in range(int(found[1]), int(found[2]) + 1))
    return [each for one in written for each in expand_braces(one)]


def archive_items(
    name: str, others: Counter[str], *, documents: bool, max_bytes: int
) -> Iterator[PictureItem]:
    """The pictures of an archive, in its order. `others`: counts other members by suffix. `documents`:
    whether PDFs count as pictures. `max_bytes`: bytes of a picture; larger ones are not read, and their items
    raise an error.

    Raises `RequestError` for a file that is not an archive or is truncated, after the members before the
    fault.
    """
    try:
        with open_file(name) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                opened = archive.extractfile(member)
                first = opened.read(MARK_WITHIN) if opened else b""
                if opened and (is_picture(first) or (documents and is_pdf(first))):
                    yield _item(f"tar://{member.name}::{name}", member, first, opened, max_bytes)
                else:
                    others[PurePosixPath(member.name).suffix.lower()] += 1
    except (tarfile.TarError, EOFError) as error:
        raise RequestError(f"{name} is not a tar archive, or is cut short: {error}") from error


def _item(name: str, member: tarfile.TarInfo, first: bytes, rest: IO[bytes], max_bytes: int) -> PictureItem:
    if member.size > max_bytes:
        return PictureItem(name, partial(_refuse, max_bytes))
    return PictureItem(name, partial(bytes, first + rest.read()), held=member.size)


def _refuse(max_bytes: int) -> bytes:
    raise too_large(max_bytes)
