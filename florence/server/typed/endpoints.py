"""The typed endpoints: one BentoML API for each task, and its answer as a pydantic type.

Knows what an endpoint does with its input (`inputs`): it asks the model, or refuses the input (`refusals`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import bentoml
from pydantic import BaseModel, create_model
from starlette.responses import Response

from florence.answers.answer import Answer
from florence.images.limits import ImageLimits
from florence.server.fetching.fetcher import PictureFetcher
from florence.server.outcomes import await_answer
from florence.server.replies import reply_or_error
from florence.server.typed.drawn import draw_answer, wants_picture
from florence.server.typed.inputs import INPUT_TYPES, Described, PictureInput, PromptInput, bring_picture
from florence.server.typed.refusals import explain
from florence.settings import Settings
from florence.types.answer import TaskAnswer, answer_type
from florence.types.options import RequestParameters
from florence.types.results import Result
from florence.types.tasks import Kind, Task, prompt_task

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2

PROMPT_SUMMARY: Final = "Answer a custom prompt, which the model reads word for word."


@cache
def output_type(kind: Kind) -> type[BaseModel]:
    """The type of an endpoint's answer, by the kind of its task's result."""
    name = "".join(word.title() for word in kind.split("_")) + "Answer"
    bases: Any = (Described, answer_type(kind))
    made: type[BaseModel] = create_model(name, __base__=bases, __doc__=TaskAnswer.__doc__)
    return made


class PromptAnswer(Described, TaskAnswer[Result]):
    """The answer to a prompt; its result is of the kind that was asked for."""


class Endpoints(Protocol):
    """The members of the service that endpoints use."""

    settings: Settings
    model: Florence2
    fetcher: PictureFetcher


def endpoint(task: Task) -> Any:
    """The BentoML API of a task: `POST /<name>`."""

    async def answer(service: Endpoints, fields: dict[str, Any], timeout_s: float) -> BaseModel | Response:
        limits = service.settings.image_limits
        return await answer_task(service.model, limits, timeout_s, task.token, fields, accepted())

    summary = f"{task.summary} Task {task.token}."
    return create_api(task.name, summary, INPUT_TYPES[task.input], output_type(task.kind), answer, task)


def prompt_endpoint() -> Any:
    """The BentoML API for prompts: `POST /prompt`."""

    async def answer(service: Endpoints, fields: dict[str, Any], timeout_s: float) -> BaseModel | Response:
        task = prompt_task(fields.pop("prompt"), fields.pop("answer_as"))
        limits = service.settings.image_limits
        return await answer_task(service.model, limits, timeout_s, task, fields, accepted())

    return create_api("prompt", PROMPT_SUMMARY, PromptInput, PromptAnswer, answer)


def accepted() -> str:
    """The Accept header of the request that BentoML's API answers."""
    return str(bentoml.Context().request.headers.get("accept", ""))


async def answer_task(
    model: Florence2,
    limits: ImageLimits,
    timeout_s: float,
    task: str | Task,
    fields: dict[str, Any],
    accept: str,
) -> BaseModel | Response:
    """The answer to a task, by the fields of its input; a PNG with it drawn on the picture where only that is
    accepted."""
    image, text, region = fields.pop("image"), fields.pop("text", None), fields.pop("region", None)
    parameters = RequestParameters.model_construct(**fields)  # validated with the input
    future = model.submit(image, task, text, region=region, timeout_s=timeout_s, parameters=parameters)
    answer = await await_answer(future, timeout_s)
    if wants_picture(accept):
        return await draw_answer(answer, image, parameters, limits, timeout_s)
    return task_answer(answer)


def create_api(
    name: str,
    summary: str,
    input_type: type[PictureInput],
    output: type[BaseModel],
    answer: Callable[[Endpoints, dict[str, Any], float], Awaitable[BaseModel | Response]],
    task: Task | None = None,
) -> Any:
    """A BentoML API, `POST /<name>`. `answer`: makes the body from the service, the input's fields and the
    seconds left. `task`: the one that the endpoint asks, if it is always the same."""

    async def work(service: Endpoints, fields: dict[str, Any]) -> BaseModel | Response:
        if "error" in fields:
            raise explain(fields["error"], input_type, task)
        scope = bentoml.Context().request.scope
        timeout_s = await bring_picture(service.fetcher, fields, service.settings.timeout_s, scope)
        return await answer(service, fields, timeout_s)

    async def call(service: Endpoints, **fields: Any) -> BaseModel | Response:
        return await reply_or_error(work(service, fields))

    call.__name__, call.__doc__ = name, summary
    api: Callable[..., Any] = bentoml.api(input_spec=input_type, output_spec=output)
    return api(call)


def task_answer(answer: Answer) -> BaseModel:
    """The answer without the generated text and tokens, which endpoints don't send."""
    fields = {name: getattr(answer, name) for name in TaskAnswer.model_fields}
    return TaskAnswer[Result].model_construct(**fields)
