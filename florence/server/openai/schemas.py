"""What the OpenAPI document says about `/v1`: its operations, and the schemas of their bodies.

Knows OpenAI's shapes as `question`, `fields` and `replies` read and write them; the document's errors and its
frame are in `typed.openapi`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from florence.server.json_schemas import (
    EVENT_STREAM,
    Responses,
    closed_object,
    json_body,
    object_of,
    reference,
)
from florence.server.openai.app import CHAT_PATH, MODEL_PATH, MODELS_PATH
from florence.server.openai.errors import error_body
from florence.server.openai.fields import IGNORED, LENGTHS, WITHOUT_EFFECT
from florence.server.openai.replies import completion, model_object
from florence.server.replies import JSON
from florence.types.answer import TaskAnswer
from florence.types.options import MAX_TEXT_CHARS, option_schemas
from florence.types.results import Result
from florence.types.tasks import Kind

TAG: Final = "OpenAI's API"


def chat_operations(
    name: str, picture: str, answer: Mapping[str, Any], responses: Responses
) -> dict[str, Any]:
    """The operations by path and method. `name`: the model's. `picture`: an example in base64. `answer`: the
    typed answer to `caption` about it."""
    asked = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
    message = {"role": "user", "content": [{"type": "text", "text": "caption"}, asked]}
    whole = completion(name, TaskAnswer[Result].model_validate(answer)) | {"id": "chatcmpl-0", "created": 0}
    model = model_object(name, str(answer["checkpoint"]), 0)
    chat = _operation(
        "chat", "Answer a task, or a prompt, as a chat completion.", "ChatCompletion", whole, responses
    )
    chat["responses"]["200"]["content"] |= EVENT_STREAM
    chat["description"] = (
        "The text names a task by its token or name, with the task's text or region behind it: `<OD>`, "
        "`region to category: 40, 140, 110, 210`. `stream` sends server-sent events. OpenAI's fields that "
        "are not listed are refused unless they ask for nothing."
    )
    chat["requestBody"] = json_body(reference("ChatRequest"), {"model": name, "messages": [message]})
    one = _operation("model", "The model.", "ChatModel", model, responses)
    one["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": _only(name)}]
    models = {"object": "list", "data": [model]}
    listed = _operation("models", "The models that there are: one.", "ChatModels", models, responses)
    return {CHAT_PATH: {"post": chat}, MODELS_PATH: {"get": listed}, MODEL_PATH: {"get": one}}


@cache
def chat_schemas(name: str) -> dict[str, Any]:
    """The schemas by their names in the document. `name`: the model's."""
    text = {"type": "string"}
    detail = {"enum": ["auto", None]}
    url = {"type": "string", "description": "A data URI, or a URL as image_url of the typed endpoints."}
    parts = [
        closed_object({"type": {"const": "text"}, "text": {**text, "maxLength": MAX_TEXT_CHARS}}),
        closed_object(
            {
                "type": {"const": "image_url"},
                "image_url": closed_object({"url": url, "detail": detail}, "url"),
            }
        ),
    ]
    one_picture = {"contains": parts[1], "minContains": 1, "maxContains": 1}
    content = {"type": "array", "items": {"anyOf": parts}, "minItems": 2, **one_picture}
    message = closed_object({"role": {"const": "user"}, "content": content, "name": text}, "role", "content")
    any_object = {"type": "object"}
    length = {"type": "integer", "minimum": 1, "description": "The same as max_new_tokens."}
    request = {
        "model": _only(name),
        "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": 1},
        "stream": {"type": "boolean"},
        "stream_options": closed_object({"include_usage": {"type": "boolean"}}),
        "answer_as": {"enum": list(Kind), "description": "The text is a prompt of a fine-tune, answered so."},
        **dict.fromkeys(LENGTHS, length),
        **_options(),
        **{name: {"description": "Has no effect."} for name in IGNORED},
        **{name: {"enum": [*values, None]} for name, values in WITHOUT_EFFECT.items()},
    }
    streams = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
    count = {"type": "integer"}
    usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count}
    answer = {
        "role": {"const": "assistant"},
        "content": text,
        "refusal": {"type": "null"},
        "florence2_result": {**any_object, "description": "The result of the typed endpoints."},
    }
    choice = {
        "index": {"const": 0},
        "message": closed_object(answer),
        "finish_reason": {"enum": ["stop", "length"]},
    }
    error = {"message": text, "type": text, "param": _or_null(text), "code": _or_null(text)}
    model = {
        "id": text,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": text,
        "root": text,
    }
    return {
        "ChatRequest": {
            **closed_object(request, "model", "messages"),
            "dependentSchemas": {"stream_options": streams},
        },
        "ChatCompletion": object_of(
            {
                "id": text,
                "object": {"const": "chat.completion"},
                "created": {"type": "integer"},
                "model": _only(name),
                "choices": {"type": "array", "items": object_of(choice), "minItems": 1, "maxItems": 1},
                "usage": object_of(usage),
                "system_fingerprint": {**text, "description": "The checkpoint that answered."},
                "florence2": {**any_object, "description": "The rest of the typed endpoints' answer."},
            }
        ),
        "ChatModel": object_of(model),
        "ChatModels": object_of(
            {"object": {"const": "list"}, "data": {"type": "array", "items": reference("ChatModel")}}
        ),
        "ChatError": object_of({"error": object_of(error)}),
    }


def _options() -> dict[str, Any]:
    """The options of the typed endpoints; here a temperature may be 0, which turns sampling off."""
    options = option_schemas()
    temperature = options["temperature"]
    return options | {"temperature": {**temperature, "anyOf": [{"const": 0}, *temperature["anyOf"]]}}


def _operation(name: str, summary: str, answer: str, example: Any, responses: Responses) -> dict[str, Any]:
    made = responses(reference(answer), example)
    for status, reply in made.items():
        if status != "200":
            message = reply["content"][JSON]["example"]["error"]
            told = {"schema": reference("ChatError"), "example": error_body(message, int(status))}
            reply["content"][JSON] = told
    return {"tags": [TAG], "operationId": f"v1_{name}", "summary": summary, "responses": made}


def _only(value: str) -> dict[str, str]:
    return {"type": "string", "const": value}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
