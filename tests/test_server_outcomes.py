"""Waiting for answers: the first error, the time limit, a caller that is cancelled."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest
from fake_model import FakeModel
from v2 import picture

from florence.answers.answer import Answer
from florence.errors import Closed, DeadlineExceeded, FlorenceError, ImageError
from florence.server import outcomes
from florence.server.outcomes import await_answer, await_answers, await_outcomes


def done(outcome: Answer | Exception) -> Future[Answer]:
    """A future with this outcome."""
    future: Future[Answer] = Future()
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


@pytest.fixture
def answer(model: FakeModel) -> Answer:
    """A caption of the fake model."""
    return model.submit(picture(), "<CAPTION>").result()


def test_answers_come_in_the_order_of_their_futures(answer: Answer) -> None:
    """Answers are in the order of their futures, not of their completion."""
    others = [answer.model_copy(update={"checkpoint": str(index)}) for index in range(3)]

    async def wait() -> list[Answer]:
        futures: list[Future[Answer]] = [Future() for _ in others]
        waiting = asyncio.ensure_future(await_answers(futures, 60.0))
        for future, other in reversed(list(zip(futures, others, strict=True))):
            await asyncio.sleep(0)
            future.set_result(other)
        return await waiting

    assert asyncio.run(wait()) == others


def test_the_first_error_names_its_row_and_cancels_the_others(answer: Answer) -> None:
    """An error names its row and cancels the other futures, even if rows before it are unfinished."""
    unfinished: Future[Answer] = Future()
    with pytest.raises(ImageError, match=r"^row 2: broken$"):
        asyncio.run(await_answers([done(answer), unfinished, done(ImageError("broken"))], 60.0))
    assert unfinished.cancelled()


def test_one_request_has_no_row_in_its_error() -> None:
    """A single request's error names no row."""
    with pytest.raises(ImageError, match=r"^broken$"):
        asyncio.run(await_answer(done(ImageError("broken")), 60.0))


def test_outcomes_are_independent(answer: Answer) -> None:
    """One failed future leaves the other answers; a cancelled future is a Closed error."""
    cancelled: Future[Answer] = Future()
    cancelled.cancel()
    got = asyncio.run(await_outcomes([done(ImageError("broken")), done(answer), cancelled], 60.0))
    assert got[1] is answer
    assert [type(got[index]) for index in (0, 2)] == [ImageError, Closed]


@pytest.mark.parametrize("wait", [await_answers, await_outcomes])
def test_a_model_that_hangs_does_not_hold_up_the_error(wait: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A future that never ends fails after the time limit."""
    monkeypatch.setattr(outcomes, "SPARE_S", 0.0)
    hung: Future[Answer] = Future()

    async def limited() -> Any:
        try:
            return (await asyncio.wait_for(wait([hung], 0.01), 60))[0]
        except FlorenceError as error:
            return error

    outcome = asyncio.run(limited())
    assert isinstance(outcome, DeadlineExceeded)
    assert str(outcome) == "the request was not finished within 0.01 s"
    assert hung.cancelled()


@pytest.mark.parametrize("wait", [await_answers, await_outcomes])
def test_a_cancelled_caller_cancels_its_requests(wait: Any) -> None:
    """Cancelling the caller cancels its futures, so that the device doesn't work for a client that left."""
    futures: list[Future[Answer]] = [Future(), Future()]

    async def leave() -> None:
        waiting = asyncio.ensure_future(wait(futures, 60.0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    assert all(future.cancelled() for future in futures)
