"""The model's configuration and the repository index, as Triton's clients read them."""

from __future__ import annotations

import pytest
from fake_model import FakeModel
from starlette.applications import Starlette
from v2 import send

ENTRY = {"name": "florence2", "version": "1"}


@pytest.mark.parametrize("path", ["/v2/models/florence2/config", "/v2/models/florence2/versions/1/config"])
def test_the_configuration_is_what_perf_analyzer_needs(app: Starlette, path: str) -> None:
    """The configuration has protobuf's type names, dims without the batch, an optional TEXT_PROMPT and no
    ensemble."""
    config = send(app, "GET", path).json()
    assert (config["name"], config["max_batch_size"]) == ("florence2", 36)
    tensors = config["input"] + config["output"]
    assert all((tensor["data_type"], tensor["dims"]) == ("TYPE_STRING", [1]) for tensor in tensors)
    assert {tensor["name"]: tensor["optional"] for tensor in config["input"]} == {
        "INPUT_IMAGE": False,
        "TASK_PROMPT": False,
        "TEXT_PROMPT": True,
    }
    assert "ensemble_scheduling" not in config


def test_extensions_name_what_there_is(app: Starlette) -> None:
    """The extensions are those that exist; perf_analyzer asks for statistics only if they are listed."""
    assert send(app, "GET", "/v2").json()["extensions"] == [
        "binary_tensor_data",
        "model_configuration",
        "parameters",
        "statistics",
    ]


@pytest.mark.parametrize(
    ("ready", "body", "index"),
    [
        (True, b"", [{**ENTRY, "state": "READY"}]),
        (True, b"{}", [{**ENTRY, "state": "READY"}]),
        (True, b'{"ready":true}', [{**ENTRY, "state": "READY"}]),
        (False, b"{}", [{**ENTRY, "state": "LOADING"}]),
        (False, b'{"ready":true}', []),
    ],
)
def test_the_index_lists_the_model(
    app: Starlette, model: FakeModel, ready: bool, body: bytes, index: list[dict[str, str]]
) -> None:
    """The index has the model's state; a client that asks for ready models gets only those."""
    model.ready = ready
    reply = send(app, "POST", "/v2/repository/index", content=body)
    assert (reply.status_code, reply.json()) == (200, index)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready":1}', b"\xff"])
def test_a_malformed_index_request_is_refused(app: Starlette, body: bytes) -> None:
    """A malformed index request is a 400."""
    assert send(app, "POST", "/v2/repository/index", content=body).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/florence2/config", 405),
        ("POST", "/v2/models/florence2/stats", 405),
        ("POST", "/v2/models/stats", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/models/nope/config", 404),
        ("GET", "/v2/models/florence2/versions/97/config", 404),
        ("GET", "/v2/models/florence2/config/", 404),
    ],
)
def test_the_new_paths_are_as_exact_as_the_others(
    app: Starlette, method: str, path: str, status: int
) -> None:
    """Method, model, version and slash of these paths are checked exactly."""
    reply = send(app, method, path)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
