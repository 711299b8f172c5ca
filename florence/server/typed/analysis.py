"""`POST /analyze`: many tasks on one picture in one call, as a BentoML API.

The picture is read and encoded once. A failed task has its error in place of an answer; if all fail, the
reply is the first one's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from florence.answers.answer import Answer
from florence.errors import RequestError
from florence.server.outcomes import await_outcomes
from florence.server.replies import failure_of, log_failure
from florence.server.typed.drawn import wants_picture
from florence.server.typed.endpoints import Endpoints, accepted, create_api, task_answer
from florence.server.typed.inputs import Described, PictureInput
from florence.types.analysis import MOST_TASKS, Analysis, AnalysisTask, TaskFailure
from florence.types.options import RequestParameters

SUMMARY: Final = "Answer many tasks on one picture, which is encoded once."
TaskName = Annotated[str, Field(max_length=100)]


class _TasksField(PictureInput):
    tasks: list[AnalysisTask | TaskName] = Field(
        min_length=1,
        max_length=MOST_TASKS,
        description="The tasks: objects, or just names or tokens. In a form, too, the list is JSON.",
    )


class AnalyzeInput(RequestParameters, _TasksField):
    """Input of `/analyze`: a picture, tasks, and options that hold for all of them."""


class AnalyzeAnswer(Described, Analysis):
    """The answers, in the order of the tasks."""


def analyze_endpoint() -> Any:
    """The BentoML API: `POST /analyze`."""
    return create_api("analyze", SUMMARY, AnalyzeInput, AnalyzeAnswer, _analyze)


async def _analyze(service: Endpoints, fields: dict[str, Any], timeout_s: float) -> BaseModel:
    if wants_picture(accepted()):
        raise RequestError("image/png is the drawn answer of one task; ask /analyze for application/json")
    image, tasks = fields.pop("image"), [_read_task(task) for task in fields.pop("tasks")]
    parameters = RequestParameters.model_construct(**fields)  # validated with the input
    given = [(task.task, task.given) for task in tasks]
    futures = service.model.submit_all(image, given, timeout_s=timeout_s, parameters=parameters)
    return _analysis(tasks, await await_outcomes(futures, timeout_s))


def _read_task(task: Any) -> AnalysisTask:
    return AnalysisTask(task=task) if isinstance(task, str) else AnalysisTask.model_validate(task)


def _analysis(tasks: Sequence[AnalysisTask], outcomes: Sequence[Answer | BaseException]) -> BaseModel:
    """The body; raises the first task's error if all failed."""
    answers: list[Any] = []
    for task, outcome in zip(tasks, outcomes, strict=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome  # the call itself was cancelled
        answers.append(_failure(task, outcome) if isinstance(outcome, Exception) else task_answer(outcome))
    first = outcomes[0]
    if isinstance(first, Exception) and all(isinstance(answer, TaskFailure) for answer in answers):
        raise first
    return AnalyzeAnswer.model_construct(answers=answers)


def _failure(task: AnalysisTask, error: Exception) -> TaskFailure:
    log_failure(error)
    failure = failure_of(error)
    return TaskFailure(task=task.task, error=failure.message, status=failure.status)
