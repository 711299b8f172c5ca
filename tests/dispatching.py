"""Helpers for tests of the dispatcher: a slow picture, an observer that counts, a function that sends
requests."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future

from waiting import PATIENCE_S

from florence import Florence2
from florence.answers.answer import Answer
from florence.engine.observer import FinishReason, Observer
from florence.images.preprocess import InputSize
from florence.readers.picture import PictureSource
from florence.readers.readers import THREADS
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.pipeline import TaskRequest
from florence.types.options import RequestParameters

MAX_QUEUE = 4


class Gauges(Observer):
    """Count the requests that wait for their pictures, and how requests ended."""

    def __init__(self) -> None:
        self.unread = 0
        self.endings: Counter[FinishReason] = Counter()
        self._lock = threading.Lock()

    def reading(self, change: int) -> None:
        """Count requests that wait for their pictures."""
        with self._lock:
            self.unread += change

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        """Count an ending."""
        with self._lock:
            self.endings[ending] += 1


def input_size(library: Florence2) -> InputSize:
    """The input size of the goldens' checkpoint."""
    height, width = library.info()["picture_size"]
    return InputSize(height, width, 3)


class SlowPicture:
    """A picture whose bytes come when `release` is set; `asked` is set when a reader waits for them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked, self.release = threading.Event(), threading.Event()

    def __call__(self) -> bytes:
        self.asked.set()
        assert self.release.wait(PATIENCE_S)
        return self.data


def ask(
    dispatcher: Dispatcher, image: PictureSource, *tasks: str, timeout_s: float | None = None
) -> list[Future[Answer]]:
    """Send tasks on one picture; without tasks, a caption."""
    asked = [
        TaskRequest(task, None, RequestParameters(), timeout_s=timeout_s) for task in tasks or ("<CAPTION>",)
    ]
    return dispatcher.submit(image, asked)


def occupy(dispatcher: Dispatcher, slow: SlowPicture) -> list[Future[Answer]]:
    """Give every reader a picture whose bytes have not come yet."""
    futures = [future for _ in range(THREADS) for future in ask(dispatcher, slow)]
    assert slow.asked.wait(PATIENCE_S)
    return futures
