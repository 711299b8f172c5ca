"""Takes requests through their stages: a reader reads the picture, the engine generates, a finisher makes the
typed answer.

Each request has one future, which gets exactly one outcome whatever happens to its picture, the engine or the
caller. A request is in one of three places: in the `PreprocessQueue` until its picture is read, in the
engine, or in the finisher. Code that removes it from one place completes its future or puts it into the next.
Knows nothing about HTTP.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from florence.answers.answer import Answer
from florence.engine.faults import strip_tracebacks
from florence.engine.loop import Engine
from florence.engine.observer import FinishReason, Observer
from florence.engine.request import Generation, Request
from florence.engine.sequence import SequenceState
from florence.errors import Closed, DeadlineExceeded, FlorenceError, Overloaded
from florence.images.seen import ORIGINAL, View
from florence.readers.picture import PictureSource, ReadPicture
from florence.readers.readers import Readers, complete
from florence.runtime.answering import original_answer, typed_answer
from florence.runtime.deadlines import DeadlineWatch
from florence.runtime.futures import cancel_with, shut_down
from florence.runtime.gathering import Gathering, OnTile
from florence.runtime.journey import Journey
from florence.runtime.pipeline import CheckedTask, Pipeline, Prepared, TaskRequest
from florence.runtime.shares import Shares
from florence.runtime.streaming import TextStreamer

log = logging.getLogger(__name__)

LAST_ANSWERS_S = 5.0
"""Seconds that closing with a time limit waits for the last answers, which a slow `on_text` callback may hold
up."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that passed its checks. `started`, `deadline`: by the dispatcher's clock, in seconds;
    `deadline` is None for no limit."""

    task: CheckedTask
    started: float
    deadline: float | None
    streamer: TextStreamer | None
    original: bool
    on_tile: OnTile | None
    journey: Journey


@dataclass(frozen=True, slots=True)
class Waiting:
    """An accepted request in the queue. `sharing`: the futures of all requests on the same picture."""

    request: Accepted
    picture: Future[ReadPicture]
    sharing: Sequence[Future[Answer]]


class PreprocessQueue:
    """Requests whose pictures have not been read yet. Here they can expire or be cancelled.

    Thread-safe without a lock, since a future may be cancelled in a thread that holds any lock.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._waiting: dict[Future[Answer], Waiting] = {}
        self._watch: DeadlineWatch[Future[Answer]] = DeadlineWatch(self._expire, clock)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, requests: Mapping[Future[Answer], Accepted], picture: Future[ReadPicture]) -> None:
        """Add requests on one picture. A request whose future is already cancelled is dropped at once."""
        sharing = list(requests)
        # Add all of them first: the picture is released together with its last request.
        self._waiting |= {future: Waiting(requests[future], picture, sharing) for future in sharing}
        for future, request in requests.items():
            self._observer.reading(1)
            if request.deadline is not None:
                self._watch.add(future, request.deadline)
            future.add_done_callback(self._drop_cancelled)

    def find(self, future: Future[Answer]) -> Waiting | None:
        """The request; None if it has been taken out."""
        return self._waiting.get(future)

    def take(self, future: Future[Answer]) -> bool:
        """Take the request out; False if that has happened before. Releases the picture if no other request
        needs it."""
        waiting = self._waiting.pop(future, None)
        if waiting is None:
            return False
        self._watch.remove(future)
        self._observer.reading(-1)
        if not any(other in self._waiting for other in waiting.sharing):
            waiting.picture.cancel()
        return True

    def fail(self, future: Future[Answer], error: BaseException) -> None:
        """Fail a request that was taken out."""
        if isinstance(error, DeadlineExceeded | Closed):
            self._observer.ended(FinishReason.CLOSED if isinstance(error, Closed) else FinishReason.DEADLINE)
        complete(future, error)

    def close(self) -> None:
        """Fail all requests that are left, and stop watching deadlines."""
        self._watch.close()
        for future in list(self._waiting):
            if self.take(future):
                self.fail(future, Closed("this model was closed before the picture was read"))

    def _expire(self, future: Future[Answer]) -> None:
        if self.take(future):
            self.fail(future, DeadlineExceeded("the request's picture was not read in the time given for it"))

    def _drop_cancelled(self, future: Future[Answer]) -> None:
        if future.cancelled() and self.take(future):
            self._observer.ended(FinishReason.CANCELLED)
            future.set_running_or_notify_cancel()  # else `concurrent.futures.wait` would go on waiting


class Dispatcher:
    """Takes the requests of one model through its readers, its engine and its finisher."""

    def __init__(
        self,
        pipeline: Pipeline,
        engine: Engine,
        readers: Readers,
        observer: Observer,
        *,
        shares: Shares | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shares`: of the queue, None for no limits by owner. `clock`: that of the engine, in seconds."""
        self._pipeline = pipeline
        self.engine = engine
        self._readers = readers
        self._observer = observer
        self.shares = shares or Shares(sys.maxsize)
        self._clock = clock
        self._queue = PreprocessQueue(observer, clock)
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="florence-finisher")
        self._closed = False
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether new requests are refused."""
        return self._closed

    def submit(
        self, image: PictureSource, requests: Sequence[TaskRequest], view: View = ORIGINAL
    ) -> list[Future[Answer]]:
        """Start requests on one picture, which is read once. Returns a future for each."""
        started = self._clock()
        futures: list[Future[Answer]] = [Future() for _ in requests]
        with self._lock:  # the queue and the readers must have the same order
            admitted = self._admit(dict(zip(futures, requests, strict=True)), started)
            if not admitted:
                return futures
            picture = self._readers.read(image, view)
            self._queue.add(admitted, picture)
        picture.add_done_callback(partial(self._continue, list(admitted)))
        return futures

    def close(self, drain_s: float | None = None) -> None:
        """As `Florence2.close`."""
        end = None if drain_s is None else time.monotonic() + drain_s
        with self._lock:
            self._closed = True
        self._readers.close(drain_s)
        with self._lock:  # no request is between queue and engine while the lock is held
            pass
        self._queue.close()
        self.engine.close(drain_s=None if end is None else max(0.0, end - time.monotonic()))
        shut_down(self._finisher, None if end is None else LAST_ANSWERS_S)

    def _admit(
        self, requests: Mapping[Future[Answer], TaskRequest], started: float
    ) -> dict[Future[Answer], Accepted]:
        """The requests that pass their checks and find room; the futures of the others fail."""
        admitted: dict[Future[Answer], Accepted] = {}
        owner = self.shares.owner()
        for future, request in requests.items():
            journey = Journey(owner, self._clock, started)
            future.add_done_callback(partial(self._report, journey))
            try:
                accepted = self._accept(request, journey)
                self._check_room(len(admitted), owner)
            except Exception as error:  # noqa: BLE001  (it is the outcome, as in any executor)
                complete(future, error)
            else:
                self.shares.enter(owner, future)
                admitted[future] = accepted
        return admitted

    def _report(self, journey: Journey, future: Future[Answer]) -> None:
        self.shares.leave(journey.owner, future)
        self._observer.finished(journey.report(future))

    def _accept(self, request: TaskRequest, journey: Journey) -> Accepted:
        task, started = self._pipeline.check(request), journey.started
        journey.task = task
        deadline = None if request.timeout_s is None else started + request.timeout_s
        streamer = None
        if request.on_text is not None:
            streamer = TextStreamer(self._pipeline.tokenizer.reader(), request.on_text, self._finisher)
        return Accepted(task, started, deadline, streamer, request.original, request.on_tile, journey)

    def _check_room(self, before: int, owner: str) -> None:
        """Raise `Overloaded` or `Closed` if one more request can't be accepted; `before`: requests accepted
        before it that are not in the queue yet."""
        if self._closed:
            raise Closed("this model was closed")
        try:
            self.shares.check(owner, self.engine.wait_s)
        except Overloaded:
            self._observer.ended(FinishReason.REFUSED)
            raise
        self.engine.check_load(before + len(self._queue) + self.engine.snapshot().waiting)

    def _continue(self, futures: Sequence[Future[Answer]], picture: Future[ReadPicture]) -> None:
        """Go on after the picture was read or failed to be read. Called in a reader's thread."""
        if picture.cancelled():  # then no request waits for it, or `close` fails those that do
            return
        error = picture.exception()
        for future in futures:
            if error is None:
                self._hand_over(future, picture.result())
            elif self._queue.take(future):
                self._queue.fail(future, error)

    def _hand_over(self, future: Future[Answer], picture: ReadPicture) -> None:
        """Submit a request to the engine, unless it has ended meanwhile."""
        waiting = self._queue.find(future)
        if waiting is None:
            return
        request, taken, failure = waiting.request, False, None
        sequences = list[SequenceState]()
        on_token = None if request.streamer is None else request.streamer.on_token
        request.journey.has_read(picture.size)
        try:
            parts, prepared = self._pipeline.prepare(request.task, picture, request.deadline, on_token)
            finish = partial(self._finish, future, request, prepared)
            gathering = Gathering(len(parts), finish, request.on_tile)
            with self._lock:  # so that `_check_room` counts it either here or in the engine
                taken = self._queue.take(future)
                if taken:
                    if picture.tiles:
                        self._check_tiles(request.journey.owner, len(parts))
                        self._finisher.submit(gathering.tell)
                    for part in self._parts(future, request.journey, parts, gathering):
                        sequences.append(part)
        except Exception as error:  # noqa: BLE001  (as above)
            failure = _without_frames(error) if taken or self._queue.take(future) else None
        if failure is not None:
            self._queue.fail(future, failure)
        for sequence in sequences:  # also the earlier ones when a later one is refused
            cancel_with(future, sequence)

    def _check_tiles(self, owner: str, count: int) -> None:
        """Raise `Overloaded` if there is no room for all tiles of a request, which so far has one place in
        the queue."""
        self.shares.check(owner, self.engine.wait_s, count - 1)
        self.engine.check_load(len(self._queue) + self.engine.snapshot().waiting + count - 1)

    def _parts(
        self, future: Future[Answer], journey: Journey, parts: Sequence[Request], gathering: Gathering
    ) -> Iterator[SequenceState]:
        """Submit the parts of a request to the engine, one after another. The first one takes over the
        request's place in its owner's share."""
        for number, part in enumerate(parts):
            place: object = future
            if number:
                place = object()
                self.shares.enter(journey.owner, place)
                future.add_done_callback(partial(self._leave, journey.owner, place))
            take, leave = partial(gathering.take, number), partial(self.shares.leave, journey.owner, place)
            # The engine's thread must only hand the outcome over.
            yield self.engine.submit(part, partial(self._finisher.submit, take), leave)

    def _leave(self, owner: str, place: object, future: Future[Answer]) -> None:
        self.shares.leave(owner, place)

    def _finish(
        self,
        future: Future[Answer],
        request: Accepted,
        prepared: Prepared,
        outcome: Sequence[Generation] | FlorenceError,
    ) -> None:
        """Make the answer. Called in the finisher's thread."""
        made: Any = outcome
        try:
            if not isinstance(outcome, FlorenceError):
                request.journey.generated(outcome)
                if request.streamer is not None:
                    request.streamer.end()
                seconds = self._clock() - request.started
                make = original_answer if request.original else typed_answer
                made = make(self._pipeline, prepared, outcome, seconds)
        except Exception as error:  # noqa: BLE001  (as above)
            made = _without_frames(error)
        complete(future, made)


def _without_frames(error: Exception) -> Exception:
    """The error without tracebacks: a caller may keep it, and frames hold pixels."""
    if not isinstance(error, FlorenceError):
        log.error("a request failed unexpectedly", exc_info=error)
    strip_tracebacks(error)
    return error
