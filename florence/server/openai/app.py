"""`/v1/chat/completions` and `/v1/models`, for the `openai` client: a Starlette app.

Knows the routes and the order of the steps: `question` and `fields` read a body, `replies` makes one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from florence.answers.answer import Answer
from florence.errors import FieldError, NotFound, RequestError, UnknownModel
from florence.runtime.streaming import OnText, check_streamed
from florence.server.events import reply_in_events
from florence.server.fetching.fetcher import PictureFetcher
from florence.server.http.bodies import read_body
from florence.server.long_strings import Document, LongString, parsing_cost, short_strings
from florence.server.openai.errors import openai_error
from florence.server.openai.fields import read_answer_as, read_flag, read_include_usage, read_options
from florence.server.openai.question import ChatTask, find_asked, read_question
from florence.server.openai.replies import ChatChunks, completion, model_object
from florence.server.outcomes import await_answer
from florence.server.replies import json_reply, off_loop
from florence.server.typed.inputs import bring_picture
from florence.server.v2.inference import Inference
from florence.types.options import RequestParameters
from florence.types.tasks import Task

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2

CHAT_PATH: Final = "/v1/chat/completions"
MODELS_PATH: Final = "/v1/models"
MODEL_PATH: Final = MODELS_PATH + "/{model}"
_THERE_ARE: Final = f"there are POST {CHAT_PATH}, GET {MODELS_PATH} and GET {MODEL_PATH}"


def create_chat_app(inference: Inference, fetcher: PictureFetcher) -> Starlette:
    """The routes, all errors in OpenAI's shape. `fetcher`: fetches pictures that are given as URLs."""
    name, created = inference.served.name, int(time.time())

    async def chat(request: Request) -> Response:
        return await _Chat(inference, await _read(request)).reply(fetcher, request.scope)

    async def models(request: Request) -> Response:
        checkpoint = inference.ready_model().checkpoint
        return json_reply({"object": "list", "data": [model_object(name, checkpoint, created)]})

    async def model(request: Request) -> Response:
        checkpoint = inference.ready_model().checkpoint
        _check_model(request.path_params["model"], name)
        return json_reply(model_object(name, checkpoint, created))

    routes = [
        Route(CHAT_PATH, _answered(chat), methods=["POST"]),
        Route(MODELS_PATH, _answered(models), methods=["GET"]),
        Route(MODEL_PATH, _answered(model), methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    app.router.redirect_slashes = False
    return app


def _answered(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001  (logged and answered)
            return openai_error(error)

    return answer


async def _no_route(request: Request, error: Exception) -> Response:
    """The error for a path of OpenAI's API that does not exist, or not with this method."""
    return openai_error(NotFound(f"{request.method} {request.url.path[:200]} is not supported; {_THERE_ARE}"))


def _check_model(wanted: object, served: str) -> None:
    if wanted != served:
        raise UnknownModel(f"the model {str(wanted)[:100]!r} is not served; the model is {served!r}")


async def _read(request: Request) -> dict[str, Any]:
    """The body's JSON object, with LongStrings in it. Raises RequestError for anything else."""
    body = await read_body(request.receive)
    content = await off_loop(parsing_cost(body), lambda: Document(body).parse()) if body else None
    if not isinstance(content, dict):
        raise RequestError("the body must be a JSON object with model and messages")
    return content


class _Chat:
    """One request, its fields checked. Raises FlorenceError for what is wrong with it."""

    def __init__(self, inference: Inference, body: dict[str, Any]) -> None:
        self._inference = inference
        self._model: Florence2 = inference.ready_model()
        self._messages = body.pop("messages", None)
        fields: dict[str, Any] = short_strings(body)
        if "model" not in fields:
            raise FieldError("model", f"model is missing; the model is {inference.served.name!r}")
        _check_model(fields["model"], inference.served.name)
        self._answer_as = read_answer_as(fields)
        self._options = read_options(fields)
        self._streams = read_flag(fields, "stream")
        self._with_usage = read_include_usage(fields)

    async def reply(self, fetcher: PictureFetcher, scope: Scope) -> Response:
        """The completion, whole or as a stream of chunks. Raises FlorenceError."""
        question = await off_loop(_size(self._messages), read_question, self._messages)
        self._messages = None  # frees the body, which a LongString keeps
        anything = self._inference.any_prompt
        asked = find_asked(question.text, self._model.tasks, self._answer_as, any_prompt=anything)
        options = self._stream_options(asked) if self._streams else self._options
        name = self._inference.served.name
        given: dict[str, Any] = {"image_url": None, "image": question.picture}
        if isinstance(question.picture, str):
            given = {"image_url": question.picture}
        timeout_s = await bring_picture(fetcher, given, self._inference.timeout_s, scope)

        async def ask(on_text: OnText | None = None) -> Answer:
            future = self._model.submit(
                given["image"],
                asked.task,
                asked.text,
                region=asked.region,
                on_text=on_text,
                timeout_s=timeout_s,
                parameters=options,
            )
            return await await_answer(future, timeout_s)

        if not self._streams:
            return json_reply(completion(name, await ask()))
        chunks = ChatChunks(name, self._with_usage)

        async def work(on_text: OnText) -> Response:
            try:
                return chunks.end(await ask(on_text))
            except Exception as error:  # noqa: BLE001  (logged and answered)
                return openai_error(error)

        return await reply_in_events(work, chunks.text)

    def _stream_options(self, asked: ChatTask) -> RequestParameters:
        """The options with one beam. Raises FieldError for an answer that can't be sent piece by piece."""
        task = asked.task if isinstance(asked.task, Task) else self._model.tasks.resolve(asked.task)
        options = self._options
        try:
            check_streamed(task, options.num_beams or 1, tiled=options.tiled)
        except RequestError as error:
            raise FieldError("stream", f"{error}; leave stream out") from None
        return options if options.do_sample else options.model_copy(update={"num_beams": 1})


def _size(messages: Any) -> int:
    """Bytes of the LongStrings in `messages`, which have to be decoded."""
    if isinstance(messages, LongString):
        return len(messages)
    if isinstance(messages, dict):
        messages = list(messages.values())
    return sum(map(_size, messages)) if isinstance(messages, list) else 0
