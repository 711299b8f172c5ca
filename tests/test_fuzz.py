"""A bounded part of the fuzzers; `make fuzz` has the long form."""

from __future__ import annotations

import json
from typing import Any

import fuzz
import fuzzing
import pytest
import requests
import schemathesis
from fake_model import FakeModel
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

INPUTS = 150


@pytest.mark.parametrize("kind", fuzzing.TARGETS)
def test_damaged_inputs_are_read_or_refused(kind: str) -> None:
    """Pictures of every format, bodies and messages: no other exception than the package's own."""
    target = fuzzing.TARGETS[kind]
    for data in target.seeds().values():
        target.feed(data)
    for number in range(INPUTS):
        target.feed(target.input(kind, 0, number))


def test_an_input_can_be_made_again() -> None:
    """From kind, seed and number alone; another number is another input."""
    target = fuzzing.TARGETS["picture"]
    made = [target.input("picture", 1, number) for number in range(20)]
    assert made == [target.input("picture", 1, number) for number in range(20)]
    assert len(set(made)) == 20


def test_every_format_is_among_the_pictures() -> None:
    """Each can be read as it is, so what is damaged was whole."""
    formats = {name.split()[0] for name in fuzzing.pictures()}
    assert formats >= {"PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF", "AVIF"}
    for data in fuzzing.pictures().values():
        fuzzing.TARGETS["picture"].take(data)


@pytest.mark.parametrize("kind", fuzz.HTTP_KINDS)
def test_damaged_bodies_get_an_answer(client: TestClient, kind: str) -> None:
    """At each door: never 500, and an error's body is always the same object."""
    path, content_type = fuzz.HTTP_KINDS[kind]
    for number in range(INPUTS // 3):
        body = fuzz.http_body(kind, 0, number)
        reply = client.post(path, content=body, headers={"content-type": content_type})
        assert reply.status_code < 500, (kind, number)
        if reply.status_code >= 400:
            assert list(reply.json()) == ["error"], (kind, number)


@pytest.fixture(scope="session")
def document(shared_client: TestClient, shared_model: FakeModel) -> Any:
    """The service's OpenAPI document as schemathesis reads it."""
    content = json.loads(shared_client.get("/docs.json").content)
    return schemathesis.openapi.from_dict(content)


@pytest.mark.slow
def test_what_the_document_allows_is_answered(document: Any, client: TestClient) -> None:
    """Requests that schemathesis makes of each operation: no server error, and no status that the document
    does not have."""

    @settings(max_examples=5, suppress_health_check=list(HealthCheck), database=None)
    def ask(case: Any) -> None:
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
        headers = {name: value for name, value in sent.headers.items() if name.lower() != "content-length"}
        body = sent.body.encode() if isinstance(sent.body, str) else sent.body
        reply = client.request(str(sent.method), sent.path_url, content=body, headers=headers)
        told = case.operation.definition.raw["responses"]
        assert str(reply.status_code) in told, (case.method, case.path, reply.status_code, reply.text)
        assert reply.status_code < 500 or reply.status_code == 503, (case.method, case.path, reply.text)

    for result in document.get_all_operations():
        given(case=result.ok().as_strategy())(ask)()
