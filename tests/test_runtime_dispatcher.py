"""Requests on their way to the engine: one outcome each, its place in the queue given back, none held up.

The pipeline is real, the device is a fake.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from fake_runner import PATIENCE_S, Clock, FakeRunner
from waiting import wait_until

from florence import Florence2
from florence.answers.answer import Answer
from florence.engine.config import EngineConfig
from florence.engine.loop import Engine
from florence.engine.observer import FinishReason, Observer
from florence.errors import Closed, DeadlineExceeded, ImageError, Overloaded, RequestError, TaskError
from florence.images.preprocess import InputSize
from florence.readers.picture import LocalReader, PictureSource, ReadPicture
from florence.readers.readers import THREADS, Readers, ThreadReaders
from florence.runtime import dispatcher as module
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.pipeline import TaskRequest
from florence.types.options import GenerationParameters

MAX_QUEUE = 4


class Gauges(Observer):
    """How many requests wait for their pictures, and how requests ended."""

    def __init__(self) -> None:
        self.unread = 0
        self.endings: Counter[FinishReason] = Counter()
        self._lock = threading.Lock()

    def reading(self, change: int) -> None:
        with self._lock:
            self.unread += change

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        with self._lock:
            self.endings[ending] += 1


def input_size(library: Florence2) -> InputSize:
    """Of the goldens' checkpoint."""
    height, width = library.info()["picture_size"]
    return InputSize(height, width, 3)


@pytest.fixture
def gauges() -> Gauges:
    return Gauges()


@pytest.fixture
def clock() -> Clock:
    """The dispatcher's and the engine's: no request expires unless a test moves it."""
    return Clock()


@pytest.fixture
def dispatcher(library: Florence2, runner: FakeRunner, gauges: Gauges, clock: Clock) -> Iterator[Dispatcher]:
    """Before an engine that decodes one request at a time, and lets four wait."""
    limits = EngineConfig(max_batch_size=1, max_queue=MAX_QUEUE)
    engine = Engine(runner, limits, observer=gauges, clock=clock)
    pipeline = library._pipeline
    made = Dispatcher(pipeline, engine, ThreadReaders(input_size(library)), gauges, clock=clock)
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


def ask(
    dispatcher: Dispatcher, image: PictureSource, *tasks: str, timeout_s: float | None = None
) -> list[Future[Answer]]:
    """Send tasks on one picture: a caption, if none is given."""
    asked = [
        TaskRequest(task, None, GenerationParameters(), timeout_s=timeout_s)
        for task in tasks or ("<CAPTION>",)
    ]
    return dispatcher.submit(image, asked)


def occupy(dispatcher: Dispatcher, slow: SlowPicture) -> list[Future[Answer]]:
    """Give every reader a picture that is not there yet."""
    futures = [future for _ in range(THREADS) for future in ask(dispatcher, slow)]
    assert slow.asked.wait(PATIENCE_S)
    return futures


def test_many_tasks_on_one_picture_leave_a_reader_to_others(
    dispatcher: Dispatcher, slow: SlowPicture, picture: Path
) -> None:
    """However long that picture takes: one reader reads it, and no other waits for it."""
    many = ask(dispatcher, slow, "<CAPTION>", "<OD>", "<OCR>")
    assert slow.asked.wait(PATIENCE_S)
    assert isinstance(ask(dispatcher, picture)[0].result(PATIENCE_S), Answer)
    assert not any(future.done() for future in many)
    slow.release.set()
    assert all(isinstance(future.result(PATIENCE_S), Answer) for future in many)


@pytest.mark.parametrize(
    ("changes", "error", "ending"),
    [
        ({"image": b"no picture"}, ImageError, None),
        ({"image": lambda: 1 / 0}, ZeroDivisionError, None),
        ({"image": sys.exit}, SystemExit, None),
        ({"timeout_s": 1e-6}, DeadlineExceeded, FinishReason.DEADLINE),
        ({}, CancelledError, FinishReason.CANCELLED),
        ({}, None, FinishReason.STOP),
    ],
)
def test_a_request_gives_its_place_in_the_queue_back_however_it_ends(
    dispatcher: Dispatcher,
    gauges: Gauges,
    clock: Clock,
    picture: Path,
    changes: dict[str, Any],
    error: Any,
    ending: FinishReason | None,
) -> None:
    """More of them than the queue holds, one after the other; each is counted once, but for bad input."""
    turns = MAX_QUEUE + 2
    for _ in range(turns):
        slow = SlowPicture(picture.read_bytes())
        futures = occupy(dispatcher, slow)
        futures += ask(dispatcher, **{"image": picture} | changes)
        assert gauges.unread == THREADS + 1
        clock.now += 1.0
        if error is CancelledError:
            assert futures[-1].cancel()
            assert gauges.unread == THREADS  # at once, though no reader has come to it
        slow.release.set()
        assert wait(futures, PATIENCE_S).not_done == set()
        assert gauges.unread == 0
        if error is None:
            assert isinstance(futures[-1].result(), Answer)
        else:
            with pytest.raises(error):
                futures[-1].result()
    expected = Counter({FinishReason.STOP: turns * THREADS})
    expected.update([ending] * turns if ending else [])
    wait_until(lambda: gauges.endings == expected)


@pytest.mark.parametrize("task", ["nonsense", "<REGION_TO_OCR>", "<CAPTION>"])
def test_a_wrong_request_fails_before_its_picture_is_read(
    dispatcher: Dispatcher, gauges: Gauges, slow: SlowPicture, picture: Path, task: str
) -> None:
    """An unknown task, a missing region, a text that the task does not take; it takes no place."""
    futures = occupy(dispatcher, slow)
    text = "some text" if task == "<CAPTION>" else None
    (wrong,) = dispatcher.submit(picture, [TaskRequest(task, text, GenerationParameters())])
    assert isinstance(wrong.exception(0), TaskError)
    assert gauges.unread == THREADS
    assert not any(future.done() for future in futures)


def test_requests_expire_while_their_pictures_are_unread_or_being_read(
    dispatcher: Dispatcher, gauges: Gauges, clock: Clock, runner: FakeRunner, slow: SlowPicture, picture: Path
) -> None:
    """However long reading takes: here it does not end before they have failed. They never come to the
    device, an unread picture is let go, and requests without a limit are answered."""
    late = [future for _ in range(THREADS) for future in ask(dispatcher, slow, timeout_s=0.01)]
    unread = SlowPicture(picture.read_bytes())
    left = ref(unread)
    late += ask(dispatcher, unread, timeout_s=0.01)
    del unread
    patient = ask(dispatcher, picture)
    assert slow.asked.wait(PATIENCE_S)
    assert not any(future.done() for future in late)
    clock.now += 1.0
    for future in late:
        with pytest.raises(DeadlineExceeded, match="not read in the time"):
            future.result(PATIENCE_S)
    assert left() is None
    assert not patient[0].done()
    assert gauges.unread == 1
    slow.release.set()
    assert isinstance(patient[0].result(PATIENCE_S), Answer)
    assert len(runner.order) == 1
    wait_until(lambda: gauges.endings == {FinishReason.DEADLINE: 3, FinishReason.STOP: 1})


def test_a_shared_picture_is_read_while_one_of_its_requests_is_left(
    dispatcher: Dispatcher, slow: SlowPicture, picture: Path
) -> None:
    occupy(dispatcher, slow)
    first, last = ask(dispatcher, picture, "<CAPTION>", "<OD>")
    assert first.cancel()
    slow.release.set()
    assert last.result(PATIENCE_S).task == "<OD>"


def test_pictures_that_wait_to_be_read_count_for_the_queue(
    dispatcher: Dispatcher, gauges: Gauges, slow: SlowPicture, picture: Path
) -> None:
    """With a place for each that is taken, and again for one that is cancelled."""
    futures = occupy(dispatcher, slow)
    futures += [ask(dispatcher, picture)[0] for _ in range(MAX_QUEUE - THREADS)]
    (refused,) = ask(dispatcher, picture)
    assert isinstance(refused.exception(0), Overloaded)
    assert futures.pop().cancel()
    (taken,) = ask(dispatcher, picture)
    slow.release.set()
    assert all(isinstance(future.result(PATIENCE_S), Answer) for future in [*futures, taken])


def test_a_cancelled_request_keeps_no_picture_though_the_readers_are_busy(
    dispatcher: Dispatcher, slow: SlowPicture, picture: Path
) -> None:
    """Else clients that come and go would fill the memory."""
    occupy(dispatcher, slow)
    waiting = SlowPicture(picture.read_bytes())
    left = ref(waiting)
    (future,) = ask(dispatcher, waiting)
    del waiting
    assert future.cancel()
    assert left() is None


def test_a_request_that_is_cancelled_while_its_picture_is_read_never_comes_to_the_device(
    dispatcher: Dispatcher, runner: FakeRunner, slow: SlowPicture, picture: Path
) -> None:
    futures = occupy(dispatcher, slow)
    assert all(future.cancel() for future in futures)
    slow.release.set()
    assert isinstance(ask(dispatcher, picture)[0].result(PATIENCE_S), Answer)
    assert len(runner.order) == 1


@pytest.mark.parametrize("image", [b"no picture", b"\x89PNG\r\n\x1a\n" + b"damaged" * 9, None])
@pytest.mark.parametrize("tasks", [["<CAPTION>"], ["<CAPTION>", "<OD>"]])
def test_a_failed_request_keeps_no_picture(
    dispatcher: Dispatcher, image: bytes | None, tasks: list[str]
) -> None:
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
        futures = ask(dispatcher, source, *tasks)
        del source
        assert all(isinstance(one.exception(PATIENCE_S), ImageError | ValueError) for one in futures)
        wait_until(lambda: left() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize(("task", "region"), [("<REGION_TO_OCR>", (0.0, 0.0, 9000.0, 9.0)), ("<OCR>", None)])
def test_a_request_that_fails_after_its_picture_was_read_keeps_no_pixels(
    library: Florence2, runner: FakeRunner, gauges: Gauges, picture: Path, task: str, region: Any
) -> None:
    """A region outside the picture, a prompt for which the engine has no room; the future is kept."""
    pipeline, pixels = library._pipeline, list[ref[Any]]()

    class Noting(LocalReader):
        def read(self, image: PictureSource) -> ReadPicture:
            outcome = super().read(image)
            pixels.append(ref(outcome.pixels))
            return outcome

    engine = Engine(runner, EngineConfig(max_prompt_tokens=3))
    dispatcher = Dispatcher(pipeline, engine, Readers([Noting(input_size(library))]), gauges)
    gc.collect()
    gc.disable()
    try:
        request = TaskRequest(task, None, GenerationParameters(), region)
        (future,) = dispatcher.submit(picture, [request])
        assert isinstance(future.exception(PATIENCE_S), RequestError)
        wait_until(lambda: pixels[0]() is None)
    finally:
        gc.enable()
        dispatcher.close()


def test_closing_waits_for_a_picture_no_longer_than_it_is_told(
    dispatcher: Dispatcher, gauges: Gauges, slow: SlowPicture, picture: Path
) -> None:
    """Those that are read and those that wait to be fail with `Closed`, once; the readers come back later."""
    futures = [*occupy(dispatcher, slow), *ask(dispatcher, picture, "<CAPTION>", "<OD>")]
    closing = threading.Thread(target=dispatcher.close, args=(0.05,), daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert all(isinstance(future.exception(0), Closed) for future in futures)
    assert isinstance(ask(dispatcher, picture)[0].exception(0), Closed)
    assert (gauges.unread, gauges.endings) == (0, {FinishReason.CLOSED: 4})
    slow.release.set()
    dispatcher.close()  # waits for the readers now
    assert gauges.endings == {FinishReason.CLOSED: 4}


def test_closing_without_a_limit_waits_for_pictures_and_answers_them(
    dispatcher: Dispatcher, slow: SlowPicture, picture: Path
) -> None:
    futures = [*occupy(dispatcher, slow), *ask(dispatcher, picture)]
    closing = threading.Thread(target=dispatcher.close)
    closing.start()
    wait_until(lambda: dispatcher.closed)
    assert isinstance(ask(dispatcher, picture)[0].exception(0), Closed)
    assert not any(future.done() for future in futures)
    slow.release.set()
    closing.join(PATIENCE_S)
    assert all(isinstance(future.result(0), Answer) for future in futures)


def test_closing_with_a_limit_does_not_wait_for_a_callback_that_hangs(
    dispatcher: Dispatcher, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAST_ANSWERS_S", 0.05)
    told, release = threading.Event(), threading.Event()

    def on_text(_: str) -> None:
        told.set()
        assert release.wait(PATIENCE_S)

    request = TaskRequest("<CAPTION>", None, GenerationParameters(num_beams=1), on_text=on_text)
    dispatcher.submit(picture, [request])
    assert told.wait(PATIENCE_S)
    closing = threading.Thread(target=dispatcher.close, args=(0.0,), daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    release.set()
    dispatcher.close()


@pytest.mark.parametrize("seed", range(2))
def test_every_request_has_one_outcome_whatever_comes_together(
    dispatcher: Dispatcher,
    gauges: Gauges,
    clock: Clock,
    picture: Path,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    """Threads that ask and cancel at random moments, with bad pictures and short deadlines, until the model
    is closed: each future gets its outcome, once, and each place is given back."""
    data, futures, closed = picture.read_bytes(), list[Future[Answer]](), threading.Event()

    def client(dice: random.Random) -> None:
        while not closed.is_set():
            image = dice.choice([data, data, b"no picture"])
            timeout_s = dice.choice([None, None, 0.02])
            tasks = ["<CAPTION>"] * dice.choice([1, 1, 3])
            futures.extend(asked := ask(dispatcher, image, *tasks, timeout_s=timeout_s))
            clock.now += 0.01
            wait(asked[:1], dice.choice([0, 0.001, 0.01, PATIENCE_S]))
            for future in asked:
                if dice.random() < 0.5:
                    future.cancel()

    threads = [threading.Thread(target=client, args=(random.Random(10 * seed + k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: gauges.endings[FinishReason.STOP] > 20)
    dispatcher.close(drain_s=0.01)
    closed.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wait(futures, PATIENCE_S).not_done == set()
    dispatcher.close()
    assert gauges.unread == 0
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
