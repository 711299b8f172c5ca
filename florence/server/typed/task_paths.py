"""`POST /tasks/{name}`: any task that the loaded checkpoint has, its own ones included.

BentoML's endpoints are made before a checkpoint is loaded, so tasks that a checkpoint declares have theirs
here. Input and answer are those of the built-in tasks' endpoints.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from florence.errors import NotFound, TaskError
from florence.images.limits import ImageLimits
from florence.server.fetching.fetcher import PictureFetcher
from florence.server.replies import json_reply, reply_or_error
from florence.server.typed.endpoints import answer_task
from florence.server.typed.inputs import INPUT_TYPES, Refused, bring_picture
from florence.server.typed.refusals import explain
from florence.server.v2.inference import Inference
from florence.types.declared import find_declared
from florence.types.tasks import TASKS_PATH


def task_route(inference: Inference, fetcher: PictureFetcher, limits: ImageLimits) -> Route:
    """The route. `fetcher`: fetches pictures that are given as URLs. `limits`: on a picture to draw on."""

    async def task(request: Request) -> Response:
        return await reply_or_error(_answer(inference, fetcher, limits, request))

    return Route(f"/{TASKS_PATH}/{{name}}", task, methods=["POST"])


async def _answer(
    inference: Inference, fetcher: PictureFetcher, limits: ImageLimits, request: Request
) -> Response:
    """The reply to a request. Raises NotFound, which lists the tasks, for a path that names none of them."""
    model = inference.ready_model()
    name = request.path_params["name"]
    try:
        task = find_declared(model.tasks, name, "send it to /prompt")
    except TaskError as error:
        raise NotFound(str(error)) from None
    input_type = INPUT_TYPES[task.input]
    sent = await input_type.from_http_request(request, None)
    if isinstance(sent, Refused):
        raise explain(sent.error, input_type, task)
    fields = {name: getattr(sent, name) for name in input_type.model_fields}
    accept = request.headers.get("accept", "")
    timeout_s = await bring_picture(fetcher, fields, inference.timeout_s, request.scope)
    answer = await answer_task(model, limits, timeout_s, task.token, fields, accept)
    return answer if isinstance(answer, Response) else json_reply(answer.model_dump(mode="json"))
