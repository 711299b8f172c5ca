"""Each error of the package has a status over HTTP and gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import pytest
from starlette.testclient import TestClient
from v2 import INFER

from florence.errors import ClientLeft, FlorenceError, Overloaded
from florence.server.replies import GRPC_CODES, INTERNAL_ERROR, ErrorReply, failure_of, log_failure


def classes(base: type[FlorenceError] = FlorenceError) -> Iterator[type[FlorenceError]]:
    """The class and all its subclasses."""
    yield base
    for child in base.__subclasses__():
        yield from classes(child)


@pytest.mark.parametrize("kind", list(classes()))
def test_every_error_has_a_grpc_code_beside_its_status(kind: type[FlorenceError]) -> None:
    """Each error's status has a gRPC code; a new status needs a row in the table."""
    assert grpc.StatusCode[GRPC_CODES[kind.status]]


def test_an_error_s_reply_has_its_status_and_message() -> None:
    """A reply has the error's status, its message, and at least one whole second to wait."""
    assert failure_of(ClientLeft()) == ErrorReply(499, "the client left before the answer")
    assert failure_of(Overloaded("full", retry_after_s=0.1)) == ErrorReply(503, "full", 1)
    assert failure_of(Overloaded("full", retry_after_s=2.1)) == ErrorReply(503, "full", 3)


def test_an_unexpected_error_is_logged_and_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error is logged, and its text is not sent to the client."""
    error = ZeroDivisionError("secret")
    log_failure(error)
    assert failure_of(error) == ErrorReply(500, INTERNAL_ERROR)
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize(
    "path", ["/caption", "/analyze", "/region_to_ocr", INFER, "/v2/repository/index", "/v1/chat/completions"]
)
def test_values_in_values_are_the_clients_mistake_at_every_door(client: TestClient, path: str) -> None:
    """JSON nested too deep, up to and past the stack's limit, is a 400 at every endpoint."""
    for depth in (*range(64, 1100, 95), 1987):
        deep = "[" * depth + "]" * depth
        body = f'{{"model": "florence2", "inputs": [], "ready": {deep}, "region": {deep}}}'
        reply = client.post(path, content=body)
        assert reply.status_code == 400, depth
        assert "nested in more than 64 levels" in json.dumps(reply.json()["error"])
    form = client.post("/region_to_ocr", files={"image": b"a"}, data={"region": deep})
    assert form.status_code == 400
    assert "nested in more than 64 levels" in form.json()["error"]
