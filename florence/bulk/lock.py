"""One run at a time for a file of answers: two would ask the same, and keep both answers.

A lock of the system's, which a killed process loses. Knows nothing about what is in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from florence.errors import RequestError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """While it is entered no other process enters it for the same file; a file `.NAME.lock` stands beside it.

    Raises RequestError where one has. Storage that knows no locks has none.
    """
    path = out.with_name(f".{out.name}.lock")
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _taken(out) from None
            except OSError:
                pass
            if not os.fstat(file.fileno()).st_nlink:  # the one before took it away in this moment
                raise _taken(out)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _taken(out: Path) -> RequestError:
    return RequestError(
        f"another run writes into {out}; wait for its end, or name another --out: each --shard has its own"
    )
