"""Closing a dispatcher: each request ends once, and no reader or callback blocks the closing."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path

import pytest
from dispatching import Gauges, SlowPicture, ask, occupy
from fake_runner import Clock
from waiting import PATIENCE_S, wait_until

from florence.answers.answer import Answer
from florence.engine.observer import FinishReason
from florence.errors import Closed, Overloaded
from florence.readers import readers
from florence.runtime import dispatcher as module
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.pipeline import TaskRequest
from florence.types.options import RequestParameters


def test_closing_waits_for_a_picture_no_longer_than_its_time_limit(
    dispatcher: Dispatcher,
    gauges: Gauges,
    slow: SlowPicture,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the time limit all requests fail once with `Closed`; the readers end later."""
    monkeypatch.setattr(readers, "STOP_S", 0.05)
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
    """Closing without a limit reads the pictures and answers them, and refuses new requests."""
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
    """Closing with a limit does not wait for a callback that hangs."""
    monkeypatch.setattr(module, "LAST_ANSWERS_S", 0.05)
    called, release = threading.Event(), threading.Event()

    def on_text(_: str) -> None:
        called.set()
        assert release.wait(PATIENCE_S)

    request = TaskRequest("<CAPTION>", None, RequestParameters(num_beams=1), on_text=on_text)
    dispatcher.submit(picture, [request])
    assert called.wait(PATIENCE_S)
    closing = threading.Thread(target=dispatcher.close, args=(0.0,), daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    release.set()
    dispatcher.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_every_request_has_one_outcome_in_any_mix_of_events(
    dispatcher: Dispatcher,
    gauges: Gauges,
    clock: Clock,
    picture: Path,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    """Each request gets one outcome and returns its place, with random threads that ask and cancel, bad
    pictures, short deadlines, and the closing."""
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
    """The type of a future's outcome."""
    if future.cancelled():
        return CancelledError
    error = future.exception(0)
    return Answer if error is None else type(error)
