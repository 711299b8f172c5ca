"""The v2 protocol's paths, for the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from florence.server.json_schemas import EVENT_STREAM, JSON, Responses, json_body, reference
from florence.server.typed.v2_schemas import v2_schemas
from florence.server.v2.http_app import MODEL_PATH
from florence.server.v2.infer_body import build_generate_answer, build_infer_answer
from florence.server.v2.model import ServedModel
from florence.server.v2.tensors import InferAnswer
from florence.types.tasks import TASKS


def v2_paths(picture: str, caption: Mapping[str, Any], responses: Responses) -> dict[str, Any]:
    """The operations by path and method. `picture`: an example in base64. `caption`: the typed answer to
    `caption` about it."""
    v2 = partial(_v2, responses)
    served = ServedModel()
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


def _v2(responses: Responses, summary: str, type: str | None = None, example: Any = None) -> dict[str, Any]:
    """`type`: the answer's: one of JSON's types, or a schema's name; None for no body."""
    named = reference(type) if type in v2_schemas() else {"type": type}
    told = responses(None if type is None else named, example)
    return {"tags": ["v2 protocol"], "summary": summary, "responses": told}
