"""`POST /analyze`: many tasks on one picture in one call, as a BentoML API.

The picture is read and goes through the tower once. A task that fails has its error in its place; where none
could be answered, the reply is the first one's error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import bentoml
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from florence.answers.answer import Answer
from florence.errors import RequestError, TaskError
from florence.server.failures import failure_of, log_failure
from florence.server.outcomes import await_outcomes
from florence.server.replies import reply_or_error
from florence.server.typed.endpoints import Endpoints, Output, PictureInput, explain, task_answer
from florence.types.analysis import MOST_TASKS, Analysis, Ask, TaskFailure
from florence.types.options import GenerationParameters


class _TasksField(PictureInput):
    tasks: list[Ask] = Field(
        min_length=1,
        max_length=MOST_TASKS,
        description="What to do with the picture; JSON also where the body is a form.",
    )


class AnalyzeInput(GenerationParameters, _TasksField):
    """Input of `/analyze`: a picture, tasks, and options that hold for all of them."""


class AnalyzeAnswer(Output, Analysis):
    """The answers, in the order of the tasks."""


def analyze_endpoint() -> Any:
    """The BentoML API: `POST /analyze`."""

    async def call(service: Endpoints, **fields: Any) -> BaseModel | Response:
        return await reply_or_error(_analyze(service, fields))

    call.__name__ = "analyze"
    call.__doc__ = "Answer many tasks on one picture, which is looked at once."
    api: Callable[..., Any] = bentoml.api(input_spec=AnalyzeInput, output_spec=AnalyzeAnswer)
    return api(call)


async def _analyze(service: Endpoints, fields: dict[str, Any]) -> BaseModel:
    refused = fields.pop("error", None)
    if isinstance(refused, ValidationError):
        raise _explain(refused)
    if refused is not None:
        raise refused
    image, asks = fields.pop("image"), [Ask.model_validate(ask) for ask in fields.pop("tasks")]
    options = {name: value for name, value in fields.items() if value is not None}
    given = [(ask.task, ask.given) for ask in asks]
    futures = service.model.submit_all(image, given, timeout_s=service.timeout_s, **options)
    outcomes = await await_outcomes(futures, service.timeout_s)
    return _analysis(asks, outcomes)


def _analysis(asks: Sequence[Ask], outcomes: Sequence[Answer | BaseException]) -> BaseModel:
    """The body; raises the first error when there is nothing else."""
    answers: list[Any] = []
    for ask, outcome in zip(asks, outcomes, strict=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome  # the call itself was cancelled
        answers.append(_failure(ask, outcome) if isinstance(outcome, Exception) else task_answer(outcome))
    first = outcomes[0]
    if isinstance(first, Exception) and all(isinstance(answer, TaskFailure) for answer in answers):
        raise first
    return AnalyzeAnswer.model_construct(answers=answers)


def _failure(ask: Ask, error: Exception) -> TaskFailure:
    log_failure(error)
    failure = failure_of(error)
    return TaskFailure(task=ask.task, error=failure.message, status=failure.status)


def _explain(error: ValidationError) -> RequestError:
    """What is wrong with the tasks, or with another field."""
    for detail in error.errors(include_url=False):
        if detail["loc"] and detail["loc"][0] == "tasks":
            where = ".".join(str(part) for part in detail["loc"][:3])
            wrong = "is missing" if detail["type"] == "missing" else f"is wrong ({detail['msg']})"
            return TaskError(
                f"{where} {wrong}; tasks is a list of 1 to {MOST_TASKS} such as "
                '[{"task": "caption"}, {"task": "<CAPTION_TO_PHRASE_GROUNDING>", "text": "a green car"}]'
            )
    return explain(error, None, AnalyzeInput)
