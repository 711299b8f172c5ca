"""Requests on their way to the engine: one outcome each, a place in the queue that comes back, no blocking.

The pipeline is real, the device is a fake.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from dispatching import MAX_QUEUE, Gauges, SlowPicture, ask, occupy
from fake_runner import Clock, FakeRunner
from waiting import PATIENCE_S, wait_until

from florence.answers.answer import Answer
from florence.engine.observer import FinishReason
from florence.errors import DeadlineExceeded, ImageError, Overloaded, TaskError
from florence.readers.readers import THREADS
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.pipeline import TaskRequest
from florence.types.options import RequestParameters


def test_many_tasks_on_one_picture_leave_a_reader_to_others(
    dispatcher: Dispatcher, slow: SlowPicture, picture: Path
) -> None:
    """Many tasks on one slow picture use one reader; another request does not wait for it."""
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
def test_a_request_gives_its_place_in_the_queue_back_at_each_kind_of_end(
    dispatcher: Dispatcher,
    gauges: Gauges,
    clock: Clock,
    picture: Path,
    changes: dict[str, Any],
    error: Any,
    ending: FinishReason | None,
) -> None:
    """A request returns its place in the queue for each kind of end, and is counted once, except for bad
    input."""
    turns = MAX_QUEUE + 2
    for _ in range(turns):
        slow = SlowPicture(picture.read_bytes())
        futures = occupy(dispatcher, slow)
        futures += ask(dispatcher, **{"image": picture} | changes)
        assert gauges.unread == THREADS + 1
        clock.now += 1.0
        if error is CancelledError:
            assert futures[-1].cancel()
            assert gauges.unread == THREADS  # at once, before any reader is free
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
    """An unknown task, a missing region and an unwanted text fail before the picture is read, and take no
    place."""
    futures = occupy(dispatcher, slow)
    text = "some text" if task == "<CAPTION>" else None
    (wrong,) = dispatcher.submit(picture, [TaskRequest(task, text, RequestParameters())])
    assert isinstance(wrong.exception(0), TaskError)
    assert gauges.unread == THREADS
    assert not any(future.done() for future in futures)


def test_requests_expire_while_their_pictures_are_unread_or_being_read(
    dispatcher: Dispatcher, gauges: Gauges, clock: Clock, runner: FakeRunner, slow: SlowPicture, picture: Path
) -> None:
    """Requests expire while their picture is unread or being read, and never reach the device. The unread
    picture is released, and requests without a limit are answered."""
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
    wait_until(lambda: left() is None)
    assert not patient[0].done()
    assert gauges.unread == 1
    slow.release.set()
    assert isinstance(patient[0].result(PATIENCE_S), Answer)
    assert len(runner.order) == 1
    wait_until(lambda: gauges.endings == {FinishReason.DEADLINE: 3, FinishReason.STOP: 1})


def test_a_shared_picture_is_read_while_one_of_its_requests_is_left(
    dispatcher: Dispatcher, slow: SlowPicture, picture: Path
) -> None:
    """A shared picture is read if one of its requests is left."""
    occupy(dispatcher, slow)
    first, last = ask(dispatcher, picture, "<CAPTION>", "<OD>")
    assert first.cancel()
    slow.release.set()
    assert last.result(PATIENCE_S).task == "<OD>"


def test_pictures_that_wait_to_be_read_count_for_the_queue(
    dispatcher: Dispatcher, gauges: Gauges, slow: SlowPicture, picture: Path
) -> None:
    """Unread pictures take places in the queue, and a cancelled one returns its place."""
    futures = occupy(dispatcher, slow)
    futures += [ask(dispatcher, picture)[0] for _ in range(MAX_QUEUE - THREADS)]
    (refused,) = ask(dispatcher, picture)
    assert isinstance(refused.exception(0), Overloaded)
    assert futures.pop().cancel()
    (taken,) = ask(dispatcher, picture)
    slow.release.set()
    assert all(isinstance(future.result(PATIENCE_S), Answer) for future in [*futures, taken])


def test_a_request_that_is_cancelled_while_its_picture_is_read_never_comes_to_the_device(
    dispatcher: Dispatcher, runner: FakeRunner, slow: SlowPicture, picture: Path
) -> None:
    """A request that is cancelled while its picture is read never reaches the device."""
    futures = occupy(dispatcher, slow)
    assert all(future.cancel() for future in futures)
    slow.release.set()
    assert isinstance(ask(dispatcher, picture)[0].result(PATIENCE_S), Answer)
    assert len(runner.order) == 1
