"""The typed endpoints: one BentoML API for each task, and its answer as a pydantic type.

Knows what an endpoint does with its input (`inputs`): it asks the model, or explains which field is wrong.
`types` has the tasks' rules on text and regions.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import bentoml
from pydantic import BaseModel, ValidationError, create_model
from starlette.responses import Response

from florence.answers.answer import Answer
from florence.errors import RequestError, TaskError, quote
from florence.server.fetching.fetcher import PictureFetcher
from florence.server.outcomes import await_answer
from florence.server.replies import reply_or_error
from florence.server.typed.drawn import draw_answer, wants_picture
from florence.server.typed.inputs import INPUT_TYPES, Described, PictureInput, PromptInput, bring_picture
from florence.types.answer import TaskAnswer, answer_type
from florence.types.options import RequestParameters, explain_option
from florence.types.regions import LOCATIONS_EXAMPLE, PIXELS_EXAMPLE
from florence.types.results import Result
from florence.types.tasks import Input, Kind, Task, prompt_task

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2


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

    model: Florence2
    timeout_s: float
    fetcher: PictureFetcher


def endpoint(task: Task) -> Any:
    """The BentoML API of a task: `POST /<name>`."""
    input_type = INPUT_TYPES[task.input]

    async def answer(service: Endpoints, fields: dict[str, Any], timeout_s: float) -> BaseModel | Response:
        return await answer_task(service.model, timeout_s, task.token, fields, accepted())

    def refusal(error: ValidationError) -> RequestError:
        return explain(error, task, input_type)

    summary = f"{task.summary} Task {task.token}."
    return create_api(task.name, summary, input_type, output_type(task.kind), answer, refusal)


def prompt_endpoint() -> Any:
    """The BentoML API for prompts: `POST /prompt`."""

    async def answer(service: Endpoints, fields: dict[str, Any], timeout_s: float) -> BaseModel | Response:
        task = prompt_task(fields.pop("prompt"), fields.pop("answer_as"))
        return await answer_task(service.model, timeout_s, task, fields, accepted())

    def refusal(error: ValidationError) -> RequestError:
        return explain(error, None, PromptInput)

    summary = "Answer a custom prompt, which the model reads word for word."
    return create_api("prompt", summary, PromptInput, PromptAnswer, answer, refusal)


def accepted() -> str:
    """The Accept header of the request that BentoML's API answers."""
    return str(bentoml.Context().request.headers.get("accept", ""))


async def answer_task(
    model: Florence2, timeout_s: float, task: str | Task, fields: dict[str, Any], accept: str
) -> BaseModel | Response:
    """The answer to a task, by the fields of its input; a PNG with it drawn on the picture where only that is
    accepted."""
    image, text, region = fields.pop("image"), fields.pop("text", None), fields.pop("region", None)
    parameters = RequestParameters.model_construct(**fields)  # validated with the input
    future = model.submit(
        image,
        task,
        text,
        region=region,
        timeout_s=timeout_s,
        parameters=parameters,
    )
    answer = await await_answer(future, timeout_s)
    if wants_picture(accept):
        return await draw_answer(answer, image, parameters, model.info()["limits"], timeout_s)
    return task_answer(answer)


def create_api(
    name: str,
    summary: str,
    input_type: type[PictureInput],
    output: type[BaseModel],
    answer: Callable[[Endpoints, dict[str, Any], float], Awaitable[BaseModel | Response]],
    refusal: Callable[[ValidationError], RequestError],
) -> Any:
    """A BentoML API, `POST /<name>`. `answer`: makes the body from the service, the input's fields and the
    seconds left. `refusal`: makes the error for an invalid input."""

    async def work(service: Endpoints, fields: dict[str, Any]) -> BaseModel | Response:
        error = fields.pop("error", None)
        if error is not None:
            raise refusal(error) if isinstance(error, ValidationError) else error
        scope = bentoml.Context().request.scope
        timeout_s = await bring_picture(service.fetcher, fields, service.timeout_s, scope)
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


def explain(error: ValidationError, task: Task | None, input_type: type[BaseModel]) -> RequestError:
    """The error that says which field of an input is wrong, and what is allowed."""
    allowed = ", ".join(input_type.model_fields)
    reasons: list[str] = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0])[:60] if detail["loc"] else ""
        if task and (
            name == "region" or (name == "text" and detail["type"] in ("missing", "extra_forbidden"))
        ):
            return TaskError(_input_rule(task, name))
        if detail["type"] == "extra_forbidden":
            reasons.append(f"unknown field {name!r}; the fields are {allowed}")
        elif detail["type"] == "missing":
            reasons.append(f"{name} is missing")
        elif name in RequestParameters.model_fields:
            reasons.append(explain_option(detail))
        else:
            message = detail["msg"].removeprefix("Value error, ")
            got = "" if name in ("", "image") else f", got {quote(detail['input'], 60)}"
            named = name and "picture" not in message  # a message on the picture names it itself
            reasons.append(f"{name}: {message}{got}" if named else message)
    return RequestError("; ".join(dict.fromkeys(reasons)))


def _input_rule(task: Task, name: str) -> str:
    if task.input is Input.NONE:
        return f"{task.token} takes no {name}; leave it out"
    if task.input is Input.TEXT:
        return f'{task.token} needs a text and takes nothing else: "text": {json.dumps(task.example)}'
    return (
        f'{task.token} needs a region and takes nothing else: "region": {list(PIXELS_EXAMPLE)} in pixels, '
        f'or "region": {json.dumps(LOCATIONS_EXAMPLE)} in thousandths of the picture\'s width and height'
    )
