"""The service's description of itself: `GET /docs.json` and `GET /info`, a Starlette app.

Knows paths and bodies; the content comes from the model and `openapi`.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from florence import __version__
from florence.errors import Closed
from florence.server.replies import json_reply, reply_or_error
from florence.server.typed.openapi import openapi_document
from florence.server.v2.inference import Inference
from florence.types.info import ServiceInfo
from florence.types.tasks import TASKS, Task


def create_about_app(inference: Inference, max_body_bytes: int) -> Starlette:
    """The two routes. max_body_bytes: the service's limit, shown by `/info`."""

    async def docs(request: Request) -> Response:
        return json_reply(openapi_document(_own_tasks(inference)))

    async def info(request: Request) -> Response:
        return await reply_or_error(_info(inference, max_body_bytes))

    return Starlette(routes=[Route("/docs.json", docs), Route("/info", info)])


def _own_tasks(inference: Inference) -> tuple[Task, ...]:
    """The tasks that the checkpoint declares; none before it is loaded."""
    known = () if inference.model is None else inference.model.tasks.values()
    return tuple(task for task in known if task.token not in TASKS)


async def _info(inference: Inference, max_body_bytes: int) -> Response:
    if inference.model is None:
        raise Closed("the model is not loaded")
    facts = ServiceInfo(
        version=__version__,
        timeout_s=inference.timeout_s,
        max_body_bytes=max_body_bytes,
        **inference.model.info(),
    )
    return json_reply(facts.model_dump(mode="json"))
