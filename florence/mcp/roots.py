"""The folders whose pictures an agent may name, and the URIs under which they are listed.

Knows files; nothing about MCP's messages. A path that leads out of the folders, directly or by a link, is
refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import quote as percent_encoded
from urllib.parse import unquote, urlsplit

from florence.errors import ImageError, SettingsError, quote
from florence.images.files import read_bounded
from florence.images.headers import SUFFIXES
from florence.images.limits import DEFAULT_LIMITS

SCHEME: Final = "picture"
MAX_LISTED: Final = 500
_MAX_SEEN: Final = 20_000
"""Files and folders of one root that a listing visits at most."""


class Roots:
    """The allowed folders. `local`: whether the agent runs on this machine and may give paths."""

    def __init__(self, folders: Sequence[Path], *, local: bool) -> None:
        """Raises SettingsError for one that is not a folder."""
        self.local = local
        self._folders: list[Path] = []
        for folder in folders:
            if not folder.is_dir():
                raise SettingsError(f"--root {folder} is not a folder")
            self._folders.append(folder.resolve())

    def read_path(self, path: str) -> bytes:
        """The bytes of a file; a relative path begins in the first folder. Raises ImageError."""
        if not self.local:
            raise ImageError("path works over stdio only; send the picture as base64 or as a resource")
        if not self._folders:
            raise ImageError("path is not allowed: start the server with --root FOLDER")
        return self._read(self._folders[0] / path, path)

    def read_uri(self, uri: str) -> bytes:
        """The bytes of a picture by the URI of a listed resource, or by a file: URI where paths are allowed.
        Raises ImageError."""
        try:
            parts = urlsplit(uri)
            path = unquote(parts.path, errors="strict")
        except ValueError:
            raise ImageError(f"the resource {quote(uri)} is not a URI") from None
        if parts.scheme == "file":
            return self.read_path(path)
        number, _, name = path.removeprefix("/").partition("/")
        known = parts.scheme == SCHEME and number.isascii() and number.isdecimal() and len(number) < 5
        if not known or not 1 <= int(number) <= len(self._folders) or not name:
            raise ImageError(
                f"the resource {quote(uri)} is not one of this server's; resources/list has those"
            )
        return self._read(self._folders[int(number) - 1] / name, uri)

    def uris(self) -> Iterator[tuple[str, Path]]:
        """The URI and the file of each listed picture, folder by folder, at most `MAX_LISTED`."""
        found = (
            (f"{SCHEME}:///{number}/{percent_encoded(file.relative_to(folder).as_posix())}", file)
            for number, folder in enumerate(self._folders, start=1)
            for file in _pictures(folder)
        )
        return islice(found, MAX_LISTED)

    def _read(self, path: Path, said: str) -> bytes:
        try:
            real = path.resolve(strict=True)
            inside = any(real.is_relative_to(folder) for folder in self._folders)
            allowed = inside and real.is_file()
        except (OSError, ValueError, RuntimeError):  # also for a null character, and a loop of links
            allowed = False
        if not allowed:  # the same message whether or not the file exists
            raise ImageError(f"{quote(said)} is not a file in the folders that --root allows")
        try:
            with real.open("rb") as file:
                return read_bounded(file, DEFAULT_LIMITS.max_bytes)
        except OSError as error:
            raise ImageError(f"{quote(said)} can't be read: {error.strerror}") from None


def _pictures(folder: Path) -> Iterator[Path]:
    """The folder's files with a picture's suffix; hidden ones are left out, and links to folders not
    followed."""
    seen = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(folders) + len(files)
        if seen > _MAX_SEEN:
            return
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place, name)
