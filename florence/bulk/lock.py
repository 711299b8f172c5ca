"""Allows one run at a time for a file of answers: two would ask the same questions and keep both answers.

Uses a system lock, which ends with the process. Knows nothing about the file's contents.
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
    """A context that only one process can enter for a file at a time, by a lock file `.NAME.lock` beside it.

    Raises `RequestError` where another process is inside. If the system or storage does not support locks,
    nothing is locked.
    """
    path = out.with_name(f".{out.name}.lock")
    with path.open("w") as file:
        # The process before may have just deleted the lock file, so that another one could be created.
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
    """Lock the file; False if another process has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the storage does not support locks
        return True
    return True
