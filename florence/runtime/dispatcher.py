"""Calls on their way: a reader reads the picture, the engine answers, a finisher makes the typed answer.

Each call has one future, and that gets one outcome, whatever becomes of its picture, of the engine or of who
waits for it. Knows nothing about HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

from florence.answers.answer import Answer
from florence.engine.futures import settle
from florence.engine.loop import Engine
from florence.engine.observer import FinishReason, Observer
from florence.engine.request import Generation
from florence.errors import Closed, DeadlineExceeded, OptionError, Overloaded, TaskError
from florence.runtime.pipeline import Picture, Pipeline, Prepared, SharedPicture, TaskText
from florence.runtime.streaming import OnText, TextStreamer
from florence.types.options import read_generation_parameters
from florence.types.tasks import Task

IMAGE_THREADS = 2
"""Threads that read pictures: decoders release the interpreter's lock, and the engine needs the other
cores."""

LAST_ANSWERS_S = 5.0
"""For the last answers of a model that is closed with a time limit: a callback for text may hold them up."""

_Running = Future[Generation]


@dataclass(frozen=True, slots=True)
class Call:
    """One task on one picture, as it was asked. `started`: a reading of `time.monotonic()`."""

    image: Picture | SharedPicture
    task: str | Task
    text: TaskText
    options: Mapping[str, Any]
    started: float
    streamer: TextStreamer | None = None

    def prepare(self, pipeline: Pipeline) -> Prepared:
        """Check and read everything that the call holds."""
        options = dict(self.options)
        region, timeout_s = options.pop("region", None), options.pop("timeout_s", None)
        parameters = options.pop("parameters", None)
        if self.text is not None and region is not None:
            raise TaskError("both text and region are given; a task takes one of them")
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise OptionError(f"timeout_s must be a number of seconds above 0, got {timeout_s!r}")
        deadline = None if timeout_s is None else self.started + timeout_s
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineExceeded("the request's picture was not read in the time given for it")
        return pipeline.prepare(
            self.image,
            self.task,
            self.text if region is None else region,
            read_generation_parameters(options) if parameters is None else parameters,
            deadline,
            None if self.streamer is None else self.streamer.on_token,
        )


class Reading:
    """Calls whose pictures wait to be read or are read. Who takes a call out of here settles its future.

    Safe for threads without a lock, since a future may be cancelled in one that holds any lock.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._calls: dict[Future[Answer], Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> Future[Answer]:
        """A new call's future. When it is cancelled, the call and its picture are let go at once."""
        future: Future[Answer] = Future()
        self._calls[future] = call
        self._observer.reading(1)
        future.add_done_callback(self._left)
        return future

    def find(self, future: Future[Answer]) -> Call | None:
        """The call; None when it was taken."""
        return self._calls.get(future)

    def take(self, future: Future[Answer]) -> bool:
        """Whether the call was still here; it is no more."""
        if self._calls.pop(future, None) is None:
            return False
        self._observer.reading(-1)
        return True

    def take_all(self) -> list[Future[Answer]]:
        """The futures of all calls that were still here."""
        return [future for future in list(self._calls) if self.take(future)]

    def fail(self, future: Future[Answer], error: BaseException) -> None:
        """End a call that was taken out of here."""
        if isinstance(error, DeadlineExceeded | Closed):
            self._observer.ended(FinishReason.CLOSED if isinstance(error, Closed) else FinishReason.DEADLINE)
        settle(future, error)

    def _left(self, future: Future[Answer]) -> None:
        if future.cancelled() and self.take(future):
            self._observer.ended(FinishReason.CANCELLED)
            future.set_running_or_notify_cancel()  # for those who wait for many futures at once


class Calls:
    """The way of all calls of one model, through its threads."""

    def __init__(self, pipeline: Pipeline, engine: Engine, observer: Observer) -> None:
        self._pipeline = pipeline
        self._engine = engine
        self._reading = Reading(observer)
        self._readers = ThreadPoolExecutor(IMAGE_THREADS, thread_name_prefix="florence-reader")
        self._finishers = ThreadPoolExecutor(1, thread_name_prefix="florence-finisher")
        self._closed = False
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether no more calls are taken."""
        return self._closed

    def streamer(self, on_text: OnText) -> TextStreamer:
        """Tells one call's text, in the finishers' thread."""
        return TextStreamer(self._pipeline.tokenizer.reader(), on_text, self._finishers)

    def start(self, calls: Sequence[Call]) -> list[Future[Answer]]:
        """Start calls, which one reader prepares one after the other; a future for each.

        So those with the same picture have it read once, and none holds up a reader to wait for another.
        """
        with self._lock:
            futures = [self._admit(call) for call in calls]
            if taken := [future for future in futures if not future.done()]:
                self._readers.submit(self._read, taken)
        return futures

    def close(self, drain_s: float | None = None) -> None:
        """As `Florence2.close`."""
        end = None if drain_s is None else time.monotonic() + drain_s
        with self._lock:
            self._closed = True
        _shut(self._readers, drain_s)
        with self._lock:  # so nobody is halfway to the engine
            left = self._reading.take_all()
        for future in left:
            self._reading.fail(future, Closed("this model was closed before the picture was read"))
        self._engine.close(drain_s=None if end is None else max(0.0, end - time.monotonic()))
        _shut(self._finishers, None if end is None else LAST_ANSWERS_S)

    def _admit(self, call: Call) -> Future[Answer]:
        """The call's future, failed already where it is one too many. With the lock."""
        if self._closed:
            return failed(Closed("this model was closed"))
        try:
            self._engine.check_load(len(self._reading) + self._engine.waiting)
        except Overloaded as error:
            return failed(error)
        return self._reading.add(call)

    def _read(self, futures: Sequence[Future[Answer]]) -> None:
        """In a reader."""
        for future in futures:
            error = self._prepare(future)
            if error is not None and self._reading.take(future):
                self._reading.fail(future, error)

    def _prepare(self, future: Future[Answer]) -> BaseException | None:
        """Read the picture and give the request to the engine; what went wrong, if anything did."""
        call = self._reading.find(future)
        if call is None:
            return None
        try:
            self._hand_over(call, call.prepare(self._pipeline), future)
        except BaseException as error:  # noqa: BLE001  (it is the answer, as of any executor)
            return error
        return None

    def _hand_over(self, call: Call, prepared: Prepared, future: Future[Answer]) -> None:
        """To the engine, unless the caller goes meanwhile."""
        # Futures keep their callbacks. If each held the other, the collector alone could free the picture.
        finish = partial(self._finish, prepared, call.streamer, call.started, future)
        with self._lock:  # so that whoever counts finds it in one of the two queues
            if self._reading.find(future) is None:
                return
            running = self._engine.submit(prepared.request)
            if not self._reading.take(future):  # cancelled just now
                running.cancel()
                return
            running.add_done_callback(lambda done: self._finishers.submit(finish, done))
        future.add_done_callback(partial(_pass_on, ref(running)))

    def _finish(
        self,
        prepared: Prepared,
        streamer: TextStreamer | None,
        started: float,
        future: Future[Answer],
        done: _Running,
    ) -> None:
        """In a finisher: make the typed answer, off the engine's thread."""
        if done.cancelled():
            future.set_running_or_notify_cancel()  # as above
        elif (error := done.exception()) is not None:  # not raised: its traceback would hold pixels
            settle(future, error)
        else:
            settle(future, self._answer(prepared, streamer, started, done.result()))

    def _answer(
        self, prepared: Prepared, streamer: TextStreamer | None, started: float, generation: Generation
    ) -> Answer | Exception:
        try:
            if streamer is not None:
                streamer.end()
            return self._pipeline.answer(prepared, generation, time.monotonic() - started)
        except Exception as error:  # noqa: BLE001  (as above)
            return error


def failed(error: Exception) -> Future[Answer]:
    """A future that has its exception already."""
    future: Future[Answer] = Future()
    settle(future, error)
    return future


def _pass_on(running: ref[_Running], future: Future[Answer]) -> None:
    if future.cancelled() and (inner := running()) is not None:
        inner.cancel()


def _shut(pool: ThreadPoolExecutor, seconds: float | None) -> None:
    """Let the pool finish what it has, for at most so many seconds; it takes no more."""
    if seconds is None:
        pool.shutdown()
        return
    pool.shutdown(wait=False)
    waiting = threading.Thread(target=pool.shutdown, daemon=True)  # which has no time limit itself
    waiting.start()
    waiting.join(seconds)
