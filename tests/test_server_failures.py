"""The table of errors: each error of the package has a status over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

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
