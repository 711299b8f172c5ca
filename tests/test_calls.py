"""Calls through the threads that read pictures: one outcome for each, its place given back, nobody held up.

The pipeline is real, the device is the engine's tests' own.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from fake_runner import PATIENCE_S, FakeRunner
from waiting import wait_until

from florence import Florence2
from florence.answers.answer import Answer
from florence.engine.config import EngineConfig
from florence.engine.loop import Engine
from florence.engine.observer import FinishReason, Observer
from florence.errors import Closed, DeadlineExceeded, ImageError, Overloaded, TaskError
from florence.runtime import dispatcher as calls
from florence.runtime.dispatcher import IMAGE_THREADS, Call, Calls
from florence.runtime.pipeline import Picture, SharedPicture

MAX_QUEUE = 4


class Gauges(Observer):
    """Requests whose pictures are read, and how requests ended."""

    def __init__(self) -> None:
        self.read = 0
        self.endings: Counter[FinishReason] = Counter()
        self._lock = threading.Lock()

    def reading(self, change: int) -> None:
        with self._lock:
            self.read += change

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        with self._lock:
            self.endings[ending] += 1


@pytest.fixture
def gauges() -> Gauges:
    return Gauges()


@pytest.fixture
def started(library: Florence2, runner: FakeRunner, gauges: Gauges) -> Iterator[Calls]:
    """Calls of an engine that decodes one request at a time, and lets four wait."""
    config = EngineConfig(max_batch_size=1, max_queue=MAX_QUEUE)
    engine = Engine(runner, config, observer=gauges)  # type: ignore[arg-type]
    made = Calls(library._pipeline, engine, gauges)
    yield made
    runner.gate.set()
    made.close(drain_s=PATIENCE_S)


class SlowPicture:
    """Its bytes come when `release` is set; `asked` says that a reader waits for them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked, self.release = threading.Event(), threading.Event()

    def __call__(self) -> bytes:
        self.asked.set()
        assert self.release.wait(PATIENCE_S)
        return self.data


@pytest.fixture
def slow(picture: Path) -> Iterator[SlowPicture]:
    made = SlowPicture(picture.read_bytes())
    yield made
    made.release.set()


def call(image: Picture | SharedPicture, task: str = "<CAPTION>", **options: Any) -> Call:
    return Call(image, task, None, options, time.monotonic())


def occupy(started: Calls, slow: SlowPicture) -> list[Future[Answer]]:
    """A picture that is not there yet in every reader."""
    futures = [started.start([call(slow)])[0] for _ in range(IMAGE_THREADS)]
    assert slow.asked.wait(PATIENCE_S)
    return futures


def test_many_tasks_on_one_picture_leave_a_reader_to_others(
    started: Calls, slow: SlowPicture, picture: Path
) -> None:
    """However long that picture takes: it is read in one thread, and no other waits for it."""
    shared = SharedPicture(slow)
    many = started.start([call(shared, task) for task in ("<CAPTION>", "<OD>", "<OCR>")])
    assert slow.asked.wait(PATIENCE_S)
    assert isinstance(started.start([call(picture)])[0].result(PATIENCE_S), Answer)
    assert not any(future.done() for future in many)
    slow.release.set()
    assert all(isinstance(future.result(PATIENCE_S), Answer) for future in many)


@pytest.mark.parametrize(
    ("changes", "error", "ending"),
    [
        ({"image": b"no picture"}, ImageError, None),
        ({"image": lambda: 1 / 0}, ZeroDivisionError, None),
        ({"image": sys.exit}, SystemExit, None),
        ({"task": "nonsense"}, TaskError, None),
        ({"timeout_s": 1e-6}, DeadlineExceeded, FinishReason.DEADLINE),
        ({}, CancelledError, FinishReason.CANCELLED),
        ({}, None, FinishReason.STOP),
    ],
)
def test_a_call_gives_its_place_in_the_queue_back_whatever_becomes_of_it(
    started: Calls,
    gauges: Gauges,
    picture: Path,
    changes: dict[str, Any],
    error: Any,
    ending: FinishReason | None,
) -> None:
    """More of them than the queue holds, one after the other; each is counted once, but for bad input."""
    turns = MAX_QUEUE + 2
    for _ in range(turns):
        slow = SlowPicture(picture.read_bytes())
        futures = occupy(started, slow)
        futures += started.start([call(**{"image": picture} | changes)])
        assert gauges.read == IMAGE_THREADS + 1
        if error is CancelledError:
            assert futures[-1].cancel()
            assert gauges.read == IMAGE_THREADS  # at once, though no reader has come to it
        slow.release.set()
        assert wait(futures, PATIENCE_S).not_done == set()
        assert gauges.read == 0
        if error is None:
            assert isinstance(futures[-1].result(), Answer)
        else:
            with pytest.raises(error):
                futures[-1].result()
    expected = Counter({FinishReason.STOP: turns * IMAGE_THREADS})
    expected.update([ending] * turns if ending else [])
    wait_until(lambda: gauges.endings == expected)


def test_pictures_that_wait_to_be_read_count_for_the_queue(
    started: Calls, gauges: Gauges, slow: SlowPicture, picture: Path
) -> None:
    """With a place for each that is taken, and again for one that is cancelled."""
    futures = occupy(started, slow)
    futures += [started.start([call(picture)])[0] for _ in range(MAX_QUEUE - IMAGE_THREADS)]
    (refused,) = started.start([call(picture)])
    assert isinstance(refused.exception(0), Overloaded)
    assert futures.pop().cancel()
    (taken,) = started.start([call(picture)])
    slow.release.set()
    assert all(isinstance(future.result(PATIENCE_S), Answer) for future in [*futures, taken])


def test_a_cancelled_call_keeps_no_picture_though_the_readers_are_busy(
    started: Calls, slow: SlowPicture, picture: Path
) -> None:
    """Else clients that come and go would fill the memory."""
    occupy(started, slow)
    waiting = SlowPicture(picture.read_bytes())
    left = ref(waiting)
    (future,) = started.start([call(waiting)])
    del waiting
    assert future.cancel()
    assert left() is None


def test_a_call_that_is_cancelled_while_its_picture_is_read_never_comes_to_the_device(
    started: Calls, runner: FakeRunner, slow: SlowPicture, picture: Path
) -> None:
    futures = occupy(started, slow)
    assert all(future.cancel() for future in futures)
    slow.release.set()
    assert isinstance(started.start([call(picture)])[0].result(PATIENCE_S), Answer)
    assert len(runner.order) == 1


@pytest.mark.parametrize("image", [b"no picture", b"\x89PNG\r\n\x1a\n" + b"damaged" * 9, None])
@pytest.mark.parametrize("many", [False, True])
def test_a_failed_call_keeps_no_picture(started: Calls, image: bytes | None, many: bool) -> None:
    """Also while the caller keeps the future with its error, which may be its own cause, and without Python's
    collector of cycles."""

    class Source:
        def __call__(self) -> bytes:
            if image is None:
                error = ValueError("no bytes")
                raise error from error
            return image

    gc.collect()
    gc.disable()
    try:
        source = Source()
        left = ref(source)
        (future,) = started.start([call(SharedPicture(source) if many else source)])
        del source
        assert isinstance(future.exception(PATIENCE_S), ImageError | ValueError)
        wait_until(lambda: left() is None)
    finally:
        gc.enable()


def test_closing_waits_for_a_picture_no_longer_than_it_is_told(
    started: Calls, gauges: Gauges, slow: SlowPicture, picture: Path
) -> None:
    """Those that are read and those that wait to be fail with `Closed`, once; the readers come back later."""
    futures = [*occupy(started, slow), *started.start([call(picture), call(picture, "<OD>")])]
    closing = threading.Thread(target=started.close, args=(0.05,), daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert all(isinstance(future.exception(0), Closed) for future in futures)
    assert isinstance(started.start([call(picture)])[0].exception(0), Closed)
    assert (gauges.read, gauges.endings) == (0, {FinishReason.CLOSED: 4})
    slow.release.set()
    started.close()  # waits for the readers now
    assert gauges.endings == {FinishReason.CLOSED: 4}


def test_closing_without_a_limit_waits_for_pictures_and_answers_them(
    started: Calls, slow: SlowPicture, picture: Path
) -> None:
    futures = [*occupy(started, slow), *started.start([call(picture)])]
    closing = threading.Thread(target=started.close)
    closing.start()
    wait_until(lambda: started.closed)
    assert isinstance(started.start([call(picture)])[0].exception(0), Closed)
    assert not any(future.done() for future in futures)
    slow.release.set()
    closing.join(PATIENCE_S)
    assert all(isinstance(future.result(0), Answer) for future in futures)


def test_closing_with_a_limit_does_not_wait_for_a_callback_that_hangs(
    started: Calls, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "LAST_ANSWERS_S", 0.05)
    told, release = threading.Event(), threading.Event()

    def on_text(_: str) -> None:
        told.set()
        assert release.wait(PATIENCE_S)

    streamer = started.streamer(on_text)
    streamer.on_token(713)
    streamer.on_token(713)
    assert told.wait(PATIENCE_S)
    closing = threading.Thread(target=started.close, args=(0.0,), daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    release.set()
    started.close()


@pytest.mark.parametrize("seed", range(2))
def test_every_call_ends_once_whatever_comes_together(
    started: Calls, gauges: Gauges, picture: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Threads that ask and cancel at random moments, with bad pictures and short deadlines, until the model
    is closed: each future gets its outcome, once, and each place is given back."""
    data, futures, closed = picture.read_bytes(), list[Future[Answer]](), threading.Event()

    def ask(dice: random.Random) -> None:
        while not closed.is_set():
            image = dice.choice([data, data, b"no picture"])
            timeout_s = dice.choice([None, None, 0.02])
            tasks = [call(image, timeout_s=timeout_s) for _ in range(dice.choice([1, 1, 3]))]
            futures.extend(asked := started.start(tasks))
            wait(asked[:1], dice.choice([0, 0.001, 0.01, PATIENCE_S]))
            for future in asked:
                if dice.random() < 0.5:
                    future.cancel()

    threads = [threading.Thread(target=ask, args=(random.Random(10 * seed + k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: gauges.endings[FinishReason.STOP] > 20)
    started.close(drain_s=0.01)
    closed.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wait(futures, PATIENCE_S).not_done == set()
    started.close()
    assert gauges.read == 0
    assert not [record for record in caplog.records if record.name.startswith("concurrent")]
    ends = Counter(outcome_of(future) for future in futures)
    assert (
        ends[Answer] <= gauges.endings[FinishReason.STOP]
    )  # some were cancelled while their answers were made
    assert ends[Overloaded] == gauges.endings[FinishReason.REFUSED]
    assert ends[Answer] > 10


def outcome_of(future: Future[Answer]) -> type:
    if future.cancelled():
        return CancelledError
    error = future.exception(0)
    return Answer if error is None else type(error)
