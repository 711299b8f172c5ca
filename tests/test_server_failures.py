"""The table of errors: each error of the package has a status over HTTP and gRPC."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import grpc
import pytest
from starlette.testclient import TestClient
from v2 import INFER

from florence.errors import ClientLeft, FlorenceError, Overloaded
from florence.server.replies import GRPC_CODES, INTERNAL_ERROR, ErrorReply, failure_of, log_failure


def classes(base: type[FlorenceError] = FlorenceError) -> Iterator[type[FlorenceError]]:
    yield base
    for child in base.__subclasses__():
        yield from classes(child)


@pytest.mark.parametrize("kind", list(classes()))
def test_every_error_has_a_grpc_code_beside_its_status(kind: type[FlorenceError]) -> None:
    """A new class with a new status needs a row in the table; gRPC knows every code there."""
    assert grpc.StatusCode[GRPC_CODES[kind.status]]


def test_an_error_is_told_as_it_is() -> None:
    """Its status, its message, and whole seconds to wait, at least one."""
    assert failure_of(ClientLeft()) == ErrorReply(499, "the client left before the answer")
    assert failure_of(Overloaded("full", retry_after_s=0.1)) == ErrorReply(503, "full", 1)
    assert failure_of(Overloaded("full", retry_after_s=2.1)) == ErrorReply(503, "full", 3)


def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets no word of it."""
    error = ZeroDivisionError("secret")
    log_failure(error)
    assert failure_of(error) == ErrorReply(500, INTERNAL_ERROR)
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize(
    "path", ["/caption", "/analyze", "/region_to_ocr", INFER, "/v2/repository/index", "/v1/chat/completions"]
)
def test_values_in_values_are_the_clients_mistake_at_every_door(client: TestClient, path: str) -> None:
    """However deep: up to the stack's end, and beyond it."""
    for depth in (*range(64, 1100, 95), random.randrange(64, 2000)):
        deep = "[" * depth + "]" * depth
        body = f'{{"model": "florence2", "inputs": [], "ready": {deep}, "region": {deep}}}'
        reply = client.post(path, content=body)
        assert reply.status_code == 400, depth
        assert "nested in more than 64 levels" in json.dumps(reply.json()["error"])
    form = client.post("/region_to_ocr", files={"image": b"a"}, data={"region": deep})
    assert form.status_code == 400
    assert "nested in more than 64 levels" in form.json()["error"]
