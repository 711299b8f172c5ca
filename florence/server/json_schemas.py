"""Parts of the OpenAPI document that several protocols have in common. Pure functions on dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from florence.server.events import EVENTS
from florence.server.replies import JSON

REFERENCE: Final = "#/components/schemas/{model}"
EVENT_STREAM: Final = {
    EVENTS: {
        "schema": {
            "type": "object",
            "properties": {"data": {"type": "string", "contentMediaType": JSON}},
            "required": ["data"],
            "description": "One event.",
        }
    }
}
"""The content of a streamed answer."""
Responses = Callable[[Mapping[str, Any] | None, Any], dict[str, Any]]
"""A schema (None: no body) and an example -> the responses of an operation, with errors as at other doors."""


def reference(name: str) -> dict[str, str]:
    """A schema that is one of the document's, by its name there."""
    return {"$ref": REFERENCE.format(model=name)}


def object_of(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    """An object's schema; all properties are required where `required` names none."""
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def closed_object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    """The same for an object that has no other properties."""
    return {**object_of(properties, *required), "additionalProperties": False}


def json_body(schema: Mapping[str, Any], example: Any) -> dict[str, Any]:
    """An operation's request body, which it must have."""
    return {"required": True, "content": {JSON: {"schema": schema, "example": example}}}
