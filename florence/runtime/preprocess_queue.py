"""Requests that wait for their pictures: they expire, are cancelled, or are taken out when these are read.

Knows nothing about how pictures are read, or about the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from florence.answers.answer import Answer
from florence.engine.observer import FinishReason, Observer
from florence.errors import Closed, DeadlineExceeded
from florence.readers.picture import ReadPicture
from florence.readers.readers import complete
from florence.runtime.deadlines import DeadlineWatch
from florence.runtime.pipeline import CheckedTask
from florence.runtime.streaming import TextStreamer


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that passed its checks. `started`: by the dispatcher's clock."""

    task: CheckedTask
    started: float
    deadline: float | None
    streamer: TextStreamer | None
    original: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """An accepted request in the queue. `sharing`: the futures of all requests on the same picture."""

    request: Accepted
    picture: Future[ReadPicture]
    sharing: Sequence[Future[Answer]]


class PreprocessQueue:
    """Requests whose pictures are not read yet. Here they can expire or be cancelled.

    Safe for threads without a lock, since a future may be cancelled in a thread that holds any lock.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._waiting: dict[Future[Answer], Waiting] = {}
        self._watch: DeadlineWatch[Future[Answer]] = DeadlineWatch(self._expire, clock)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, requests: Mapping[Future[Answer], Accepted], picture: Future[ReadPicture]) -> None:
        """Put in requests on one picture. One whose future is cancelled is let go at once."""
        sharing = list(requests)
        # All of them first: the picture is let go with the last that is here.
        self._waiting |= {future: Waiting(requests[future], picture, sharing) for future in sharing}
        for future, request in requests.items():
            self._observer.reading(1)
            if request.deadline is not None:
                self._watch.add(future, request.deadline)
            future.add_done_callback(self._drop_cancelled)

    def find(self, future: Future[Answer]) -> Waiting | None:
        """The request; None if it was taken out."""
        return self._waiting.get(future)

    def take(self, future: Future[Answer]) -> bool:
        """Take the request out; False if it was out already. Lets go of a picture that no request needs."""
        waiting = self._waiting.pop(future, None)
        if waiting is None:
            return False
        self._watch.remove(future)
        self._observer.reading(-1)
        if not any(other in self._waiting for other in waiting.sharing):
            waiting.picture.cancel()
        return True

    def fail(self, future: Future[Answer], error: BaseException) -> None:
        """End a request that was taken out."""
        if isinstance(error, DeadlineExceeded | Closed):
            self._observer.ended(FinishReason.CLOSED if isinstance(error, Closed) else FinishReason.DEADLINE)
        complete(future, error)

    def close(self) -> None:
        """End all requests that are still here, and the watch for deadlines."""
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
            future.set_running_or_notify_cancel()  # else `concurrent.futures.wait` would wait on
