"""One run at a time for a file of answers: two would ask the same, and keep both answers.

A lock of the system's, which a killed process loses. Knows nothing about what is in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from florence.errors import RequestError


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """While it is entered no other process enters it for the same file; a file `.NAME.lock` stands beside it.

    Raises RequestError where one has. Where system or storage know no locks, nothing is locked.
    """
    path = out.with_name(f".{out.name}.lock")
    with path.open("w") as file:
        # The one before may take the file away just now: then another may be made beside this one.
        if not _lock(file) or not os.fstat(file.fileno()).st_nlink:
            raise RequestError(
                f"another run writes into {out}; wait for its end, or name another --out: each --shard has "
                "its own"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _lock(file: IO[str]) -> bool:
    """Whether no other process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the storage knows no locks
        return True
    return True
