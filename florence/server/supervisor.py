"""The two kinds of process of `bentoml serve`: a supervisor, and the workers that it starts and replaces.

BentoML's supervisor ends with status 0 whatever its workers say, looks after them every ten seconds, and
leaves them behind when it is killed. Here is what mends that. Knows processes; knows nothing about models.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Final

import bentoml

logger = logging.getLogger("florence.service")

FAILED: Final = signal.SIGUSR1
"""What a worker sends to its supervisor when it can't start: others would not either."""
CHECK_S: Final = 1.0
"""Seconds between two looks of the supervisor at its workers."""
_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names a folder which the workers of one service share, and no others."""
_MARK: Final = "florence-loaded-"
_PR_SET_PDEATHSIG: Final = 1  # of Linux's prctl
_M_ARENA_MAX: Final = -8  # of glibc's mallopt


def prepare_supervisor() -> None:
    """In the supervisor, before it starts workers: end with status 1 when one reports that it can't start,
    and replace a worker that died at once."""
    failed = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        failed.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def tell_status() -> None:
        if failed.is_set():
            leave(1)

    if threading.current_thread() is not threading.main_thread():  # a server inside another program
        return
    signal.signal(FAILED, end)
    atexit.register(tell_status)
    atexit.register(gc.freeze)  # or Python's end looks through all that is loaded
    from circus.arbiter import Arbiter  # type: ignore[import-untyped]  # BentoML's, in the supervisor only

    # BentoML sets ten seconds without a way to change it.
    Arbiter.check_delay = property(lambda _arbiter: CHECK_S, lambda _arbiter, _seconds: None)


def is_worker() -> bool:
    """Whether this process is one of a supervisor's workers."""
    return bentoml.server_context.worker_index is not None


def end_with_supervisor() -> None:
    """In a worker: end, as by SIGTERM, when the supervisor is gone, also where that was killed."""
    if not is_worker():
        return
    supervisor = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


def share_one_heap() -> None:
    """In a worker, before it has threads: let them all allocate from one heap. By default glibc makes more,
    in which memory that one thread frees is of no use to another, and they grow for as long as they serve.
    glibc's own variable takes precedence."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, 1)


def end_serving() -> None:
    """In a worker that can't start: end `bentoml serve`, which would restart it for ever, with status 1, and
    this process, without tracebacks that would hide the reason. Outside a worker: do nothing."""
    if is_worker():
        os.kill(os.getppid(), FAILED)
        leave(1)


def leave(status: int) -> None:
    """End this process at once, with what was logged."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def a_sibling_serves() -> bool:
    """In a worker: whether another one of the same service has its model loaded and lives."""
    return any(_lives(int(mark.name.removeprefix(_MARK))) for mark in _marks())


def mark_loaded() -> None:
    """In a worker: tell the others that this one has its model loaded."""
    if folder := os.environ.get(_FOLDER):
        Path(folder, f"{_MARK}{os.getpid()}").touch()


def _marks() -> list[Path]:
    folder = os.environ.get(_FOLDER)
    return list(Path(folder).glob(f"{_MARK}[0-9]*")) if folder else []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return pid != os.getpid()


def http_host() -> str | None:
    """In a worker: the address that HTTP listens on, of the socket that the supervisor gave; else None."""
    import socket

    try:
        number = int(sys.argv[sys.argv.index("--fd") + 1])
        with socket.socket(fileno=os.dup(number)) as listening:
            return str(listening.getsockname()[0])
    except (ValueError, IndexError, OSError):
        return None
