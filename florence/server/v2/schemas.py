"""What the OpenAPI document says about `/v2`: its operations, and the JSON schemas of their bodies.

Knows the model's tensors and the options that requests take. Bodies with packed tensors behind their JSON are
not covered: no schema can describe them. The document's errors and its frame are in `typed.openapi`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from florence.server.json_schemas import EVENT_STREAM, Responses, json_body, object_of, reference
from florence.server.replies import JSON
from florence.server.v2.http_app import MODEL_PATH
from florence.server.v2.infer_body import build_generate_answer, build_infer_answer
from florence.server.v2.model import INPUTS, OUTPUT, REQUIRED_INPUTS, ServedModel
from florence.server.v2.tensors import InferAnswer
from florence.types.options import option_schemas
from florence.types.tasks import TASKS

_DESCRIPTIONS = {
    "INPUT_IMAGE": "The picture in base64.",
    "TASK_PROMPT": "The task's token, such as <OD>.",
    "TEXT_PROMPT": "The task's text or region.",
    OUTPUT: "The original's JSON, as text: an object with the task's token as its key.",
}
_SCALAR = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean")]}
_LABELS = "^[^,]*[^ ,][^,]*(,[^,]*[^ ,][^,]*)*$"
_NAMED = {"model_name": {"type": "string"}, "model_version": {"type": "string"}}


def v2_operations(
    served: ServedModel, picture: str, caption: Mapping[str, Any], responses: Responses
) -> dict[str, Any]:
    """The operations by path and method. `picture`: an example in base64. `caption`: the typed answer to
    `caption` about it."""
    v2 = partial(_v2, responses, v2_schemas(served))
    model = MODEL_PATH.format(model=served.name)
    token = TASKS.resolve("caption").token
    row = json.dumps({token: caption["result"]["text"]})
    values = {"INPUT_IMAGE": picture, "TASK_PROMPT": token}
    request = {
        "id": "42",
        "inputs": [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
            for name, value in values.items()
        ],
    }
    answer = build_infer_answer(InferAnswer(served, "42", [row]))
    infer = v2("Answer a task on a picture, as Triton does.", "InferResponse", answer)
    generated = build_generate_answer(InferAnswer(served, "", [row]))
    generate = v2("Answer a task on a picture, with one key for each input.", "GenerateResponse", generated)
    stream = v2(
        "The same, its text token by token before it where num_beams is 1 and the task answers in text."
    )
    stream["responses"]["200"]["content"] = EVENT_STREAM
    index = v2("The models that there are.", "array")
    only_ready = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    index["requestBody"] = {"content": {JSON: {"schema": only_ready, "example": {"ready": True}}}}
    bodies: list[tuple[dict[str, Any], str, Any]] = [
        (infer, "InferRequest", request),
        (generate, "GenerateRequest", values),
        (stream, "GenerateRequest", {**values, "num_beams": 1}),
    ]
    for operation, name, body in bodies:
        operation["requestBody"] = json_body(reference(name), body)
    return {
        f"{model}/infer": {"post": infer},
        f"{model}/generate": {"post": generate},
        f"{model}/generate_stream": {"post": stream},
        f"{model}/ready": {"get": v2("Whether the model takes requests.", "Ready")},
        model: {"get": v2("Inputs and outputs of the model.", "object")},
        f"{model}/config": {"get": v2("Configuration of the model.", "object")},
        f"{model}/stats": {"get": v2("Counts and durations of requests.", "object")},
        "/v2/repository/index": {"post": index},
        "/v2": {"get": v2("Name and version of the server.", "object")},
        "/v2/health/live": {"get": v2("Whether the process answers.", "Live")},
        "/v2/health/ready": {"get": v2("Whether the model takes requests.", "Ready")},
    }


@cache
def v2_schemas(served: ServedModel) -> dict[str, Any]:
    """The schemas by their names in the document."""
    rows = served.max_batch_size
    count = {"type": "integer", "minimum": 1, "maximum": rows}
    columns = {"type": "array", "prefixItems": [count, {"const": 1}], "minItems": 2, "maxItems": 2}
    shape = {"anyOf": [{"const": [1]}, columns], "description": "[n, 1] for n rows; [1] is one row."}
    strings = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": rows}
    datatype = {"const": "BYTES", "type": "string"}
    tensor = {"shape": shape, "datatype": datatype, "data": strings}
    answered = {"shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}}
    identity = {"type": "string", "description": "Comes back with the answer."}
    return {
        "InferRequest": object_of(
            {
                "id": identity,
                "inputs": {
                    "type": "array",
                    "items": object_of({"name": _one_of(INPUTS), **tensor}),
                    "minItems": len(REQUIRED_INPUTS),
                    "maxItems": len(INPUTS),
                    "description": "; ".join(f"{name}: {_DESCRIPTIONS[name]}" for name in INPUTS),
                },
                "outputs": {
                    "type": "array",
                    "items": object_of({"name": _one_of([OUTPUT]), "parameters": {"type": "object"}}, "name"),
                },
                "parameters": _parameters(),
            },
            "inputs",
        ),
        "InferResponse": object_of(
            {
                **_NAMED,
                "id": identity,
                "outputs": {
                    "type": "array",
                    "items": object_of({"name": _one_of([OUTPUT]), **tensor, **answered}),
                },
                "parameters": {"type": "object"},
            },
            *_NAMED,
            "outputs",
        ),
        "GenerateRequest": {
            **object_of(
                {
                    **{name: _text_or_texts(name, strings) for name in INPUTS},
                    "id": identity,
                    "parameters": _parameters(),
                    **_options(),
                },
                *REQUIRED_INPUTS,
            ),
            "additionalProperties": _SCALAR,
        },
        "GenerateResponse": object_of(
            {**_NAMED, "id": identity, OUTPUT: _text_or_texts(OUTPUT, strings)}, *_NAMED, OUTPUT
        ),
        "Live": object_of({"live": {"type": "boolean"}}),
        "Ready": object_of({"ready": {"type": "boolean"}, "name": {"type": "string"}}, "ready"),
    }


def _v2(
    responses: Responses,
    schemas: Mapping[str, Any],
    summary: str,
    type: str | None = None,
    example: Any = None,
) -> dict[str, Any]:
    """`type`: the answer's: one of JSON's types, or a schema's name; None for no body."""
    named = reference(type) if type is not None and type in schemas else {"type": type}
    told = responses(None if type is None else named, example)
    return {"tags": ["v2 protocol"], "summary": summary, "responses": told}


def _one_of(names: Any) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _text_or_texts(name: str, strings: dict[str, Any]) -> dict[str, Any]:
    either = [{"type": "string"}, {**strings, "description": "One for each row."}]
    return {"anyOf": either, "description": _DESCRIPTIONS[name]}


def _parameters() -> dict[str, Any]:
    microseconds = {"type": "integer", "minimum": 0, "description": "Deadline in microseconds."}
    return {
        "type": "object",
        "properties": {**_options(), "timeout": microseconds},
        "additionalProperties": _SCALAR,
        "description": "Options; others are ignored.",
    }


def _options() -> dict[str, Any]:
    """The options of the typed endpoints, as v2 takes them: no null, and a list as one text with commas."""
    made = {}
    for name, schema in option_schemas().items():
        kinds = [kind for kind in schema["anyOf"] if kind["type"] != "null"]
        if any(kind["type"] == "array" for kind in kinds):
            kinds = [{"type": "string", "pattern": _LABELS, "description": "Separated by commas."}]
        made[name] = {"anyOf": kinds, "description": schema["description"]}
    return made
