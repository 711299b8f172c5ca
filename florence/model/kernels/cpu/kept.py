"""Files that one process makes and later ones reuse, in the user's cache.

Files appear atomically, whatever other processes do at the same time. A file is used only if this user owns
it, no other user may write it, and the digest in it fits its name and content. Knows nothing about what files
contain.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_DIGEST_BYTES: Final = hashlib.sha256().digest_size


def cache_folders() -> Iterator[Path]:
    """Where files are kept: the user's cache (XDG Base Directory Specification), or, for instance with a
    read-only root, the folder for temporary files."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path's raises where there is no home
    cache = Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache")
    if cache.is_absolute():
        yield cache / "florence" / "kernels"
    yield Path(tempfile.gettempdir(), f"florence-{os.geteuid()}", "kernels")


def read_kept(name: str) -> bytes | None:
    """The content kept under a name; None where there is no such file or it can't be trusted."""
    for folder in cache_folders():
        with suppress(OSError):
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                digest, content = file.read(_DIGEST_BYTES), file.read()
                if _is_ours(os.fstat(descriptor)) and digest == _digest(name, content):
                    return content
    return None


def keep(name: str, content: bytes) -> None:
    """Keep content under a name, readable by this user only; does nothing where no folder is writable."""
    for folder in cache_folders():
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=folder)  # readable and writable by its owner only
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_digest(name, content) + content)
                Path(temporary).replace(folder / name)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
            return
    logger.info("compiled kernels can't be kept in %s", " or ".join(map(str, cache_folders())))


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()
