"""The files of a worker's metrics, which prometheus_client maps into memory: their room on the disk is taken
when the worker starts.

prometheus_client makes files with holes; where the disk is full, the first write into a hole ends the process
by SIGBUS, without a message. Knows files; nothing about what is counted.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from florence.errors import FlorenceError

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the files' folder, which only the workers of one service share."""
SIZES: Final = {
    "counter": 2**16,
    "gauge_livemax": 2**16,
    "gauge_livesum": 2**16,
    "gauge_max": 2**16,
    "gauge_sum": 2**16,
    "histogram": 2**21,  # 1.6 MB once each task has had each outcome
}
"""Kind of metric -> bytes of a worker's file."""
_USED: Final = 4  # bytes at a file's beginning, which say how many of it are used
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def metrics_folder() -> Path | None:
    """The folder; None where there are no workers."""
    folder = os.environ.get(DIRECTORY)
    return Path(folder) if folder else None


def reserve_files() -> None:
    """Call in a worker before it makes its first metric. Also gives back what workers that are gone had
    reserved and not used. Raises FlorenceError where the disk has no room."""
    directory = metrics_folder()
    if directory is None:
        return
    _trim_the_dead(directory)
    try:
        for kind, size in SIZES.items():
            with (directory / f"{kind}_{os.getpid()}.db").open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in _FULL:
            raise FlorenceError(
                f"there is no room for metrics in {directory} ({error.strerror}): a worker needs "
                f"{sum(SIZES.values())} bytes; free some space, or set BENTOML_HOME to another folder"
            ) from error  # another error: a file system that can't reserve


def files_of_the_dead(directory: Path, pattern: str) -> dict[Path, str]:
    """Files whose name fits the pattern, and whose worker is gone, with the worker's process id."""
    pids = {file: file.stem.rpartition("_")[2] for file in directory.glob(pattern)}
    return {file: pid for file, pid in pids.items() if not Path("/proc", pid).exists()}


def _trim_the_dead(directory: Path) -> None:
    for file in files_of_the_dead(directory, "*_*.db"):
        with suppress(OSError):
            _trim(file)


def _trim(file: Path) -> None:
    """Replace the file by the part that is used. A process that still has it mapped, for instance in another
    container, keeps the old one; it would be ended by SIGBUS if the file were cut."""
    content = file.read_bytes()
    used = max(int.from_bytes(content[:_USED], sys.byteorder), 2 * _USED)
    if used < len(content):
        shorter = file.with_suffix(f".{os.getpid()}")
        try:
            shorter.write_bytes(content[:used])
            shorter.replace(file)
        finally:
            shorter.unlink(missing_ok=True)
