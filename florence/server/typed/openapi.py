"""The service's description of itself: `GET /info`, and the OpenAPI document, `GET /docs.json`, which
the page at /docs shows.

Unlike BentoML's own document, it has all content types of requests (an upload, JSON, the picture alone),
examples of each task's request and answer and of each error, and the routes of v2 and /v1. Knows the
endpoints' pydantic types and the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from florence import __version__
from florence.errors import Closed, DeadlineExceeded, SlowBody, UnknownEncoding
from florence.server.fetching.fetcher import NO_PICTURE, NOT_REACHED
from florence.server.http.held import HeldBody
from florence.server.json_schemas import REFERENCE, object_of, reference
from florence.server.keys import HELP
from florence.server.openai.schemas import TAG, chat_operations, chat_schemas
from florence.server.replies import INTERNAL_ERROR, JSON, error_reply, json_reply
from florence.server.typed.analysis import SUMMARY as ANALYZE_SUMMARY
from florence.server.typed.analysis import AnalyzeAnswer, AnalyzeInput
from florence.server.typed.drawn import PNG
from florence.server.typed.endpoints import PROMPT_SUMMARY, PromptAnswer, output_type
from florence.server.typed.examples import PICTURE_PATH, example_answer, example_input, picture_text
from florence.server.typed.forms import MULTIPART, PICTURE
from florence.server.typed.inputs import INPUT_TYPES, PromptInput
from florence.server.v2.inference import Inference
from florence.server.v2.model import ServedModel
from florence.server.v2.schemas import v2_operations, v2_schemas
from florence.types.info import ServiceInfo
from florence.types.tasks import TASKS, Input, Task

_FAILURES: Final = (  # status, meaning, an example of its message
    (400, "The request can't be answered as it stands; the message says what to change.", "image is missing"),
    (401, "The service has API keys, and none that it knows was sent.", f"an API key is needed: {HELP}"),
    (404, "There is no such path, model or version.", "Not Found"),
    (408, "The body did not arrive in the time allowed.", str(SlowBody(60))),
    (
        413,
        "The body or the picture is larger than allowed.",
        "the picture has 10000x8000 = 80000000 pixels; up to 64000000 are allowed",
    ),
    (422, "The host of image_url answered, without a picture.", NO_PICTURE),
    (501, "The body's encoding is neither gzip nor deflate.", str(UnknownEncoding())),
    (500, "The service failed; its log says more.", INTERNAL_ERROR),
    (502, "The host of image_url can't be reached, or fails.", NOT_REACHED),
    (
        503,
        "The queue is full, or the service is starting or stopping; come back after Retry-After seconds.",
        "256 requests are waiting, which is the limit; come back in 3 s",
    ),
    (504, "Not finished in the time allowed.", str(DeadlineExceeded.of_request(300))),
)


def about_routes(inference: Inference, max_body_bytes: int) -> list[Route]:
    """The two routes. `max_body_bytes`: the service's limit, shown by `/info`."""

    async def docs(request: Request) -> Response:
        return _held_document(_own_tasks(inference), inference.served).reply(request)

    async def info(request: Request) -> Response:
        if inference.model is None:
            return error_reply(Closed("the model is not loaded"))
        facts = inference.model.info() | {"version": __version__}
        own = {"timeout_s": inference.timeout_s, "max_body_bytes": max_body_bytes}
        facts["limits"] = facts["limits"] | own
        return json_reply(ServiceInfo.model_validate(facts).model_dump(mode="json"))

    return [Route("/docs.json", docs), Route("/info", info)]


def _own_tasks(inference: Inference) -> tuple[Task, ...]:
    """The tasks that the checkpoint declares; none before it is loaded."""
    known = () if inference.model is None else inference.model.tasks.values()
    return tuple(task for task in known if not task.built_in)


@cache
def _held_document(own_tasks: tuple[Task, ...], served: ServedModel) -> HeldBody:
    """The document as it is sent."""
    return HeldBody(bytes(json_reply(openapi_document(own_tasks, served)).body), JSON)


@cache
def openapi_document(own_tasks: tuple[Task, ...] = (), served: ServedModel | None = None) -> dict[str, Any]:
    """The document, OpenAPI 3.1, as JSON can hold it, with an entry for each of the checkpoint's own tasks.
    `served`: the model as v2 and chats name it. Cached: it is slow to build."""
    served = served or ServedModel()
    tasks = (*TASKS.values(), *own_tasks)
    types = {output_type(task.kind): None for task in tasks}
    others = PromptInput, PromptAnswer, AnalyzeInput, AnalyzeAnswer, ServiceInfo
    wanted: list[tuple[Any, JsonSchemaMode]] = [
        (model, "serialization") for model in (*INPUT_TYPES.values(), *types, *others)
    ]
    references, definitions = models_json_schema(wanted, ref_template=REFERENCE)
    schemas = {model: reference for (model, _), reference in references.items()}
    paths = {f"/{task.path}": {"post": _task_operation(task, schemas)} for task in tasks}
    paths["/prompt"] = {"post": _prompt_operation(schemas)}
    paths["/analyze"] = {"post": _analyze_operation(schemas)}
    caption = picture_text(), example_answer("caption") or {}, _responses
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "florence",
            "version": __version__,
            "description": "Florence-2: one typed endpoint for each of its tasks, the v2 inference protocol, "
            "and OpenAI's chat completions. Regions and answers are in pixels of the picture after EXIF "
            "rotation.",
        },
        "servers": [{"url": "."}],
        "tags": [{"name": name} for name in ("Tasks", "Service", "v2 protocol", TAG, "Health")],
        "paths": {
            **paths,
            "/info": {"get": _info_operation(schemas)},
            **v2_operations(served, *caption),
            **chat_operations(served.name, *caption),
            **_health_paths(),
        },
        "components": {
            "schemas": {
                **definitions["$defs"],
                **v2_schemas(served),
                **chat_schemas(served.name),
                "Error": _ERROR,
            },
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer", "description": _KEYS}},
        },
        "security": [{}, {"apiKey": []}],
    }


_KEYS: Final = "Needed where the service has API keys (FLORENCE_API_KEYS)."
_ERROR: Final = object_of(
    {"error": {"type": "string", "description": "What went wrong, and what to change."}}
)


def _operation(
    name: str, summary: str, description: str, body: Mapping[str, Any], responses: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "tags": ["Tasks"],
        "operationId": name,
        "summary": summary,
        "description": description,
        "requestBody": body,
        "responses": responses,
    }


def _task_operation(task: Task, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    operation = _operation(
        task.path.replace("/", "_"),
        task.summary,
        f"Task `{task.token}`. The picture is an upload in multipart/form-data, base64 in JSON, or the whole "
        "body, with a Content-Type such as `image/jpeg`; then the other fields go into the query. "
        "`Accept: image/png` asks for the answer drawn on the picture.",
        _body(INPUT_TYPES[task.input], schemas, _request_example(task)),
        _responses(schemas[output_type(task.kind)], _answer_example(task), drawn=True),
    )
    return {**operation, "x-florence-task": {"token": task.token, "input": task.input, "kind": task.kind}}


def _prompt_operation(schemas: Mapping[Any, Any]) -> dict[str, Any]:
    caption = TASKS.resolve("caption")
    example = {"image": picture_text(), "prompt": caption.prompt, "answer_as": "text"}
    return _operation(
        "prompt",
        PROMPT_SUMMARY,
        "For fine-tunes with prompts that are no task here. Any tokens may repeat in the answer, unless "
        "`no_repeat_ngram_size` is sent. An answer that should be JSON and is not has the value null, the "
        "text, and why.",
        _body(PromptInput, schemas, example),
        _responses(schemas[PromptAnswer], {**_answer_example(caption), "task": caption.prompt}),
    )


def _analyze_operation(schemas: Mapping[Any, Any]) -> dict[str, Any]:
    return _operation(
        "analyze",
        ANALYZE_SUMMARY,
        "A task that fails has its error and status in its place; where none could be answered, the reply is "
        "the first one's error.",
        _body(AnalyzeInput, schemas, {"image": picture_text(), **example_input("analyze")}),
        _responses(schemas[AnalyzeAnswer], example_answer("analyze")),
    )


def _info_operation(schemas: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "tags": ["Service"],
        "operationId": "info",
        "summary": "What runs: checkpoint, device, dtype, limits, generation settings.",
        "description": "Of the worker that answers; workers differ in their device.",
        "responses": _responses(schemas[ServiceInfo], _schema_example(ServiceInfo)),
    }


def _form(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a form: the picture is a file, a list is JSON in one part, and a field is left out rather
    than null."""
    schema = model.model_json_schema(mode="serialization", ref_template=REFERENCE)
    fields = {name: _in_form(each) for name, each in schema["properties"].items()}
    fields["image"] = {"type": "string", "format": "binary", "description": fields["image"]["description"]}
    for name in fields.keys() & example.keys() - {"image"}:
        fields[name]["examples"] = [_part(example[name])]
    kept = {name: schema[name] for name in ("required", "oneOf") if name in schema}
    closed = {"type": "object", "additionalProperties": False}
    return closed | {"properties": fields} | kept


def _part(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _in_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    if any(kind.get("type") == "array" for kind in kinds):
        kinds = [{"type": "string"}]  # pages take one with a contentMediaType for a file
    told = {name: schema[name] for name in ("description", "examples", "format", "pattern") if name in schema}
    made = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {name: value for name, value in made.items() if name not in ("default", "title")} | told


def _body(model: type[BaseModel], schemas: Mapping[Any, Any], example: dict[str, Any]) -> dict[str, Any]:
    """The request's body: an upload, JSON, or the picture alone."""
    parts = {name: _part(value) for name, value in example.items()} | {"image": PICTURE_PATH.name}
    return {
        "required": True,
        "content": {
            MULTIPART: {"schema": _form(model, example), "example": parts},
            JSON: {"schema": schemas[model], "example": example},
            PICTURE: {"schema": {"type": "string", "format": "binary"}},
        },
    }


def _request_example(task: Task) -> dict[str, Any]:
    if task.built_in:
        return {"image": picture_text(), **example_input(task.name)}
    given = {} if task.input is Input.NONE else {task.input.value: task.example}
    return {"image": picture_text(), **given}


def _schema_example(model: type[BaseModel]) -> Any:
    return model.model_json_schema(mode="serialization")["examples"][0]


def _answer_example(task: Task) -> dict[str, Any]:
    known = example_answer(task.name) if task.built_in else None
    return known or {**_schema_example(output_type(task.kind)), "task": task.token}


def _responses(
    schema: Mapping[str, Any] | None, example: Any = None, *, drawn: bool = False
) -> dict[str, Any]:
    """The answer, without a body where `schema` is None, and the errors. `drawn`: whether a PNG may be asked
    for."""
    good: dict[str, Any] = {"description": "The answer."}
    if schema is not None:
        good["content"] = {JSON: {"schema": schema} | ({} if example is None else {"example": example})}
    if drawn:
        good["content"][PNG] = {"schema": {"type": "string", "format": "binary"}}
    failures = {
        str(status): {
            "description": text,
            "content": {JSON: {"schema": reference("Error"), "example": {"error": message}}},
        }
        for status, text, message in _FAILURES
    }
    return {"200": good, **failures}


def _health_paths() -> dict[str, Any]:
    described = {
        "/livez": "Whether the process answers.",
        "/readyz": "Whether the model takes requests.",
        "/metrics": "Prometheus metrics.",
    }
    good = {"200": {"description": "Yes."}, "503": {"description": "Not now."}}
    return {
        path: {"get": {"tags": ["Health"], "summary": text, "responses": good}}
        for path, text in described.items()
    }
