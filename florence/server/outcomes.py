"""Waits for a model's answers with a time limit, for all endpoints and protocols.

When a client disconnects, the waiting task is cancelled: by `CancelOnDisconnect` over HTTP, by gRPC itself.
Requests that are not finished then, or when the time is up, are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from florence.answers.answer import Answer, OriginalAnswer
from florence.errors import Closed, DeadlineExceeded, FlorenceError
from florence.server.keys import caller
from florence.server.log import logger
from florence.server.observability.json_log import FIELDS
from florence.server.observability.request_ids import call_facts

SPARE_S: Final = 0.1
"""Seconds added to the model's own time limit, whose error says more. This one takes effect if the model
can't enforce its own, because its device or one of its threads hangs."""

AnswerT = TypeVar("AnswerT", Answer, OriginalAnswer)


def log_answer(answer: Answer | OriginalAnswer, request: str = "") -> None:
    """Log an answer, its checkpoint, and the API key's name. `request`: text at the start of the line."""
    key, facts = caller(), call_facts()
    usage, timings = answer.usage, answer.timings
    logger.info(
        "%s%s answered by %s: %s, %d tokens, %.3f s, of these %.3f s waiting%s",
        request, answer.task, answer.checkpoint, answer.finish_reason,
        usage.generated_tokens, timings.total_s, timings.queue_s, f", key {key}" if key else "",
        extra={
            FIELDS: {
                "task": answer.task, "checkpoint": answer.checkpoint, "outcome": answer.finish_reason,
                "tokens": usage.generated_tokens, "total_s": timings.total_s, "queue_s": timings.queue_s,
                "encode_s": timings.encode_s, "decode_s": timings.decode_s,
            }
        },
    )  # fmt: skip
    if facts is not None:
        facts.logged = True


async def await_answer(future: Future[Answer], timeout_s: float) -> Answer:
    """The answer of one request. Raises as `await_answers`."""
    return (await await_answers([future], timeout_s))[0]


async def await_answers(
    futures: Sequence[Future[AnswerT]], timeout_s: float, *, log: Callable[[AnswerT], None] = log_answer
) -> list[AnswerT]:
    """The answers of a request's rows, in order. The first error ends the wait and is raised, naming its row
    if there are several; the other rows are cancelled.

    `log`: writes a line for each answer. Raises a future's error, Closed if the model cancelled a future,
    DeadlineExceeded if one is not done in time.
    """
    outcomes = await _wait(futures, timeout_s, asyncio.FIRST_EXCEPTION)
    answers = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, FlorenceError):
            raise name_row(outcome, index, len(futures))
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            answers.append(outcome)
    if len(answers) < len(futures):
        raise DeadlineExceeded.of_request(timeout_s)
    for answer in answers:
        log(answer)
    return answers


async def await_outcomes(
    futures: Sequence[Future[AnswerT]], timeout_s: float
) -> list[AnswerT | BaseException]:
    """The outcome of each of several independent requests, in order: its answer, or the error that
    `await_answers` would raise. Logs the answers."""
    outcomes = await _wait(futures, timeout_s, asyncio.ALL_COMPLETED)
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, BaseException):
            log_answer(outcome)
    return [DeadlineExceeded.of_request(timeout_s) if outcome is None else outcome for outcome in outcomes]


def name_row(error: FlorenceError, index: int, count: int) -> FlorenceError:
    """The error, naming the row that it comes from if there are several."""
    if count > 1:
        error.args = (f"row {index}: {error}",)
    return error


async def _wait(
    futures: Sequence[Future[AnswerT]], timeout_s: float, until: str
) -> list[AnswerT | BaseException | None]:
    """The outcomes; None for a future that was not done in time, which is then cancelled."""
    if not all(future.done() for future in futures):
        waiting = [asyncio.wrap_future(future) for future in futures]
        try:
            await asyncio.wait(waiting, timeout=timeout_s + SPARE_S, return_when=until)
            return [_outcome(future) for future in futures]
        finally:
            _cancel(waiting)
    return [_outcome(future) for future in futures]


def _outcome(future: Future[AnswerT]) -> AnswerT | BaseException | None:
    if not future.done():
        return None
    if future.cancelled():
        return Closed("the service stopped before it answered; send the request again")
    return future.exception() or future.result()


def _cancel(waiting: Sequence[asyncio.Future[Any]]) -> None:
    for future in waiting:
        if not future.cancel() and not future.cancelled():
            future.exception()  # asyncio warns about an exception that is never retrieved
