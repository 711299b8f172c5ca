"""Requests that schemathesis makes from the OpenAPI document, with real pictures in place of random texts.

Each answer is checked: it is documented, and valid by its schema.
"""

from __future__ import annotations

import base64
import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import fuzzing
import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

Ask = Callable[[requests.PreparedRequest], httpx.Response]
_ALWAYS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
_PICTURES: Final = ("image", "INPUT_IMAGE", "url")
_TASKS: Final = ("TASK_PROMPT",)


def ask_by_document(
    document: dict[str, Any], ask: Ask, examples: int, seed: int, *, wrong: bool = False
) -> Counter[str]:
    """Send `examples` requests to each operation and count the statuses; schemathesis raises an error for a
    wrong answer. wrong: send requests that the document forbids; a 200 is an error then."""
    load_all_checks()
    checks = CHECKS.get_by_names([*_ALWAYS, *(["negative_data_rejection"] if wrong else [])])
    mode = GenerationMode.NEGATIVE if wrong else GenerationMode.POSITIVE
    said: Counter[str] = Counter()

    def check(case: Any) -> None:
        case.body = with_pictures(case.body, str(case.media_type))
        reply = ask(requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare())
        said[f"{case.method} {case.path} {reply.status_code}"] += 1
        case.validate_response(reply, checks=checks)

    limits = settings(
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
        phases=[Phase.generate],
    )
    for result in schemathesis.openapi.from_dict(patterns_alone(document)).get_all_operations():
        operation = result.ok()
        raw = operation.definition.raw
        if wrong and not (raw.get("requestBody", {}).get("required") or "parameters" in raw):
            continue  # no input of this operation can be wrong
        strategy = operation.as_strategy(generation_mode=mode)
        seeded(seed)(limits(given(case=strategy)(check)))()
    return said


def patterns_alone(schema: Any) -> Any:
    """The schema with no maximum length for texts with a pattern: schemathesis merges both into one pattern,
    which takes half a second to read and allows no spaces."""
    if isinstance(schema, list):
        return [patterns_alone(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = {"maxLength"} if isinstance(schema.get("pattern"), str) else set()
    return {name: patterns_alone(each) for name, each in schema.items() if name not in left_out}


def with_pictures(body: Any, media_type: str) -> Any:
    """The body with a real picture in place of each picture's text, and a real task."""
    data = fuzzing.pictures()["PNG RGB"]
    if isinstance(body, bytes):
        return data if media_type.startswith("image/") else body
    text = base64.b64encode(data).decode()
    picture: Any = data if media_type.startswith("multipart") else text

    def filled(value: Any, name: object, owner: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(each, key, value) for key, each in value.items()}
        if isinstance(value, list):
            return [filled(each, name, owner) for each in value]
        if not isinstance(value, str | bytes):
            return value
        place = owner.get("name") if name == "data" else name
        if place == "url":
            return f"data:image/png;base64,{text}"
        return picture if place in _PICTURES else "<CAPTION>" if place in _TASKS else value

    return filled(copy.deepcopy(body), None, {}) if isinstance(body, dict | list) else body
