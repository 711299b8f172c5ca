"""Reads pictures in order of arrival, as many at a time as there are readers.

Each reader has a thread; it does its work there or in a process of its own. Knows nothing about tasks, tokens
or devices.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Protocol, TypeVar

from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize
from florence.images.seen import ORIGINAL, View
from florence.readers.budget import DecodeBudget
from florence.readers.picture import LocalReader, PictureSource, ReadPicture

T = TypeVar("T")

THREADS = 2
"""The default number of readers on a CPU: the engine needs the other cores."""
STOP_S = 5.0
"""Seconds that `close` waits for readers after their `stop`; a caller's function may block a thread."""


class Reader(Protocol):
    """Reads one picture at a time. `read` and, at the end, `close` are called in one thread. `stop` is called
    in another, and may abort a `read` in progress."""

    def read(self, image: PictureSource, view: View = ...) -> ReadPicture: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Readers:
    """Reads pictures beside the engine. The queue has no limit: the dispatcher limits how many pictures wait.

    `on_read` is called with the seconds that each picture took, its time in the queue excluded; it must be
    quick and not raise. `nbytes`: bytes of memory shared with reader processes.
    """

    nbytes = 0

    def __init__(self, readers: Sequence[Reader], on_read: Callable[[float], None] | None = None) -> None:
        self._readers = readers
        self._on_read = on_read or (lambda seconds: None)
        self._lock = threading.Lock()
        self._closed = False
        # Pictures without an outcome yet; whichever code removes a future completes it. A dict's own
        # operations are atomic: a future may be cancelled in a thread that holds any lock.
        self._open: dict[Future[ReadPicture], tuple[PictureSource, View]] = {}
        self._queue: SimpleQueue[Future[ReadPicture] | None] = SimpleQueue()  # None: stop
        self._threads = [
            threading.Thread(
                target=self._serve, args=(reader,), name=f"florence-reader-{number}", daemon=True
            )
            for number, reader in enumerate(readers)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """How many pictures are read at a time."""
        return len(self._readers)

    def read(self, image: PictureSource, view: View = ORIGINAL) -> Future[ReadPicture]:
        """Start to read a picture; returns at once. Raises RuntimeError after `close`.

        The future raises what the reader raised. Cancelling it drops a picture that is not read yet, and the
        result of one that is being read. Its callbacks run in a reader's thread and must be quick.
        """
        future: Future[ReadPicture] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("these readers are closed")
            self._open[future] = image, view
            self._queue.put(future)
        future.add_done_callback(self._forget)
        return future

    def close(self, drain_s: float | None = None) -> None:
        """Finish the pictures in the queue, for at most `drain_s` seconds (None: no limit); cancel the rest,
        and end the readers.

        Futures that were completed have run their callbacks when it returns. Closing twice does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        self._join(drain_s)
        for future in list(self._open):
            future.cancel()
        for reader in self._readers:
            reader.stop()
        self._join(STOP_S)

    def _join(self, seconds: float | None) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    def _serve(self, reader: Reader) -> None:
        try:
            self._read_all(reader)
        finally:
            reader.close()

    def _read_all(self, reader: Reader) -> None:
        while (future := self._queue.get()) is not None:
            job = self._open.get(future)
            if job is None:  # cancelled
                continue
            started = time.monotonic()
            outcome = _outcome(reader, *job)
            del job
            self._on_read(time.monotonic() - started)
            if self._open.pop(future, None) is not None:
                complete(future, outcome)
            del future, outcome  # else this thread keeps the last picture until the next one

    def _forget(self, future: Future[ReadPicture]) -> None:
        if self._open.pop(future, None) is not None:
            future.set_running_or_notify_cancel()  # for `concurrent.futures.wait`


class ThreadReaders(Readers):
    """Reads in threads of this process: no processes to start, but a crash or a decompression bomb hits this
    process."""

    def __init__(
        self,
        size: InputSize,
        limits: ImageLimits = DEFAULT_LIMITS,
        count: int = THREADS,
        on_read: Callable[[float], None] | None = None,
    ) -> None:
        budget = DecodeBudget(limits.decode_bytes)
        super().__init__([LocalReader(size, limits, budget) for _ in range(count)], on_read)


def _outcome(reader: Reader, image: PictureSource, view: View) -> ReadPicture | BaseException:
    try:
        return reader.read(image, view)
    except BaseException as error:  # noqa: BLE001  (it is the outcome, as in any executor)
        return error


def complete(future: Future[T], outcome: T | BaseException) -> None:
    """Put the outcome into the future, unless it was cancelled before.

    An error's traceback keeps its frames, but not their local variables, such as pictures.
    """
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        _clear_frames(outcome)
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _clear_frames(error: BaseException | None) -> None:
    """Empty the frames of an exception and of its causes; those that still run are left alone."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error may be its own cause
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
