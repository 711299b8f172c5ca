"""Names for files that are written for pictures. Knows nothing about their contents."""

from __future__ import annotations

import itertools
import re
from pathlib import PurePosixPath


class FileNames:
    """Unique file names for pictures: the last part of each name, numbered where several are equal."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, name: str, end: str = "") -> str:
        """A new file name without a suffix. `end`: appended to the picture's own name."""
        name = name.partition("::")[0] if "://" in name else name
        path, _, place = name.partition("#")
        stem = re.sub(r'[\\/:*?"<>|\s]+', "_", PurePosixPath(path).stem) or "picture"
        stem += (f"_{place.replace('=', '_')}" if place else "") + end
        numbered = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        found = next(each for each in numbered if each.casefold() not in self._taken)
        self._taken.add(found.casefold())  # some file systems are case-insensitive
        return found
