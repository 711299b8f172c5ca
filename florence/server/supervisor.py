"""The two kinds of process of `bentoml serve`: a supervisor, and the workers that it starts and replaces.

BentoML's supervisor exits with status 0 whatever its workers report, checks on them only every ten seconds,
and leaves them running when it is killed. This module corrects that. Knows processes; knows nothing about
models.
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
from contextlib import suppress
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final

import bentoml

from florence.server.log import logger
from florence.server.observability.metric_files import metrics_folder

FAILED: Final = signal.SIGUSR1
"""The signal from a worker to its supervisor when it can't start: other workers could not either."""
CHECK_S: Final = 1.0
"""Seconds between two checks of the supervisor on its workers."""
ANSWERS_S: Final = 2.0
"""Seconds for the last answers of a worker whose engine is broken."""
_MARK: Final = "florence-loaded-"
_PR_SET_PDEATHSIG: Final = 1  # of Linux's prctl
_M_ARENA_MAX: Final = -8  # of glibc's mallopt


def prepare_supervisor() -> None:
    """Call in the supervisor before it starts workers: makes it exit with status 1 when a worker reports that
    it can't start, and replace a dead worker within `CHECK_S` seconds."""
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
    """Call in a worker: the kernel sends it SIGTERM when the supervisor ends, even if that was killed."""
    if not is_worker():
        return
    supervisor = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # it ended meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


def share_one_heap() -> None:
    """Call in a worker before it has threads: makes them all allocate from one heap (arena). By default glibc
    makes several; memory freed in one is of no use to threads of another, so they grow for as long as the
    worker runs. glibc's own variable takes precedence."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, 1)


def end_serving() -> None:
    """Call in a worker that can't start: ends `bentoml serve`, which would restart it for ever, with status
    1; and this process, without tracebacks that would hide the reason. Outside a worker it does nothing."""
    if is_worker():
        os.kill(os.getppid(), FAILED)
        leave(1)


def end_worker() -> None:
    """Call in a worker whose engine is broken: ends the process, once the waiting requests have got their
    errors. BentoML starts another worker, or, in a container, ends too, and the orchestrator restarts it."""
    logger.critical("the engine can't recover: this worker ends")
    if is_worker():
        end = threading.Timer(ANSWERS_S, leave, [1])
        end.daemon = True
        end.start()


def leave(status: int) -> None:
    """End this process at once, after removing its temporary folders (BentoML makes one for each worker) and
    flushing its logs and standard output."""
    gc.unfreeze()  # or those of before a freeze would not be seen
    for each in gc.get_objects():
        if type(each) is TemporaryDirectory:
            with suppress(OSError):
                each.cleanup()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def a_sibling_serves() -> bool:
    """In a worker: whether another live one of the same service has its model loaded."""
    folder = metrics_folder()
    marks = folder.glob(f"{_MARK}[0-9]*") if folder else ()
    return any(_lives(int(mark.name.removeprefix(_MARK))) for mark in marks)


def mark_loaded() -> None:
    """In a worker: mark that it has its model loaded, for `a_sibling_serves` in the others."""
    if folder := metrics_folder():
        (folder / f"{_MARK}{os.getpid()}").touch()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return pid != os.getpid()


def http_host() -> str | None:
    """In a worker: the address of the HTTP socket that the supervisor passed on; elsewhere None."""
    import socket

    try:
        number = int(sys.argv[sys.argv.index("--fd") + 1])
        with socket.socket(fileno=os.dup(number)) as listening:
            return str(listening.getsockname()[0])
    except (ValueError, IndexError, OSError):
        return None
