"""JSON schemas of the v2 protocol's bodies, for the OpenAPI document.

Knows the model's tensors and the options that requests take. Bodies with packed tensors behind their JSON are
not covered: no schema can describe them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from florence.server.json_schemas import object_of
from florence.server.v2.model import INPUTS, OUTPUT, REQUIRED_INPUTS, ServedModel
from florence.types.options import RequestParameters

_DESCRIPTIONS = {
    "INPUT_IMAGE": "The picture in base64.",
    "TASK_PROMPT": "The task's token, such as <OD>.",
    "TEXT_PROMPT": "The task's text or region.",
    OUTPUT: "The original's JSON, as text: an object with the task's token as its key.",
}
_SCALAR = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean")]}
_LABELS = "^[^,]*[^ ,][^,]*(,[^,]*[^ ,][^,]*)*$"
_NAMED = {"model_name": {"type": "string"}, "model_version": {"type": "string"}}


@cache
def v2_schemas() -> dict[str, Any]:
    """The schemas by their names in the document."""
    rows = ServedModel().max_batch_size
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
    declared = RequestParameters.model_json_schema()["properties"]
    made = {}
    for name, schema in declared.items():
        kinds = [kind for kind in schema["anyOf"] if kind["type"] != "null"]
        if any(kind["type"] == "array" for kind in kinds):
            kinds = [{"type": "string", "pattern": _LABELS, "description": "Separated by commas."}]
        made[name] = {"anyOf": kinds, "description": schema["description"]}
    return made
