"""The v2 routes with a fake model: paths, statuses, headers and bodies as Triton's clients expect."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel
from starlette.applications import Starlette
from v2 import INFER, PICTURE, picture, request, send
from waiting import PATIENCE_S

from florence.errors import DeadlineExceeded, EngineError, Overloaded


def test_an_answer_is_the_originals_json_in_one_string(app: Starlette, model: FakeModel) -> None:
    """An answer has id, model, version as a string, shape [1,1] and flat data; a header names the
    checkpoint."""
    reply = send(app, "POST", INFER, json=request(id="42"))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["florence-checkpoint"] == "fake"
    assert reply.json() == {
        "id": "42",
        "model_name": "florence2",
        "model_version": "1",
        "outputs": [
            {
                "name": "PARSED_JSON",
                "datatype": "BYTES",
                "shape": [1, 1],
                "data": [json.dumps({"<CAPTION>": "a fake"})],
            }
        ],
    }
    assert model.calls[0].image == picture()


def test_checkpoints_with_any_name_fit_into_the_header(app: Starlette, model: FakeModel) -> None:
    """A checkpoint's name with characters that a header can't hold is percent-encoded."""
    model.checkpoint = "/models/prüfung\n猫"
    reply = send(app, "POST", INFER, json=request())
    assert reply.headers["florence-checkpoint"] == "/models/pr%C3%BCfung%0A%E7%8C%AB"


def test_rows_are_answered_in_their_order(app: Starlette, model: FakeModel) -> None:
    """Each row has its own picture, task and text; blank text counts as none."""
    rows = request([PICTURE] * 3, ["<OD>", "<CAPTION_TO_PHRASE_GROUNDING>", "<OCR>"], ["", "a car", " "])
    reply = send(app, "POST", INFER, json=rows)
    output = reply.json()["outputs"][0]
    assert output["shape"] == [3, 1]
    assert [next(iter(json.loads(row))) for row in output["data"]] == [
        "<OD>",
        "<CAPTION_TO_PHRASE_GROUNDING>",
        "<OCR>",
    ]
    assert [call.text for call in model.calls] == [None, "a car", None]


def test_options_reach_the_model_and_foreign_parameters_do_not(app: Starlette, model: FakeModel) -> None:
    """Options and the deadline reach the model; Triton's own parameters are ignored."""
    parameters = {"num_beams": 2, "max_new_tokens": 5, "early_stopping": False, "sequence_id": 5, "x": "y"}
    assert send(app, "POST", INFER, json=request(parameters=parameters)).status_code == 200
    assert model.calls[0].options == {
        "num_beams": 2,
        "max_new_tokens": 5,
        "early_stopping": False,
        "timeout_s": PATIENCE_S,
        "pictures": "original",
    }


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (request(parameters={"num_beams": 9}), 400, "num_beams must be an integer from 1 to 8, got 9"),
        (request(tasks=["<NOPE>"]), 400, "unknown task '<NOPE>'; the tasks are <CAPTION>"),
        (request(texts=["a car"]), 400, "<CAPTION> takes no text"),
        (request(tasks=["<REFERRING_EXPRESSION_SEGMENTATION>"]), 400, "needs a text"),
        (request(tasks=["<REGION_TO_OCR>"], texts=["1,2,3"]), 400, "is not four numbers"),
        (request([base64.b64encode(b"no picture").decode()]), 400, "not a picture"),
        (request(["%%%not base64!%%%"]), 400, "not valid base64"),
        (request([PICTURE, PICTURE], ["<OD>", "<NOPE>"]), 400, "row 1: unknown task"),
        (request([PICTURE, "%%%"], ["<OD>", "<OD>"]), 400, "row 1: the picture is not valid base64"),
        ({"inputs": []}, 400, "missing required input"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(app: Starlette, body: Any, status: int, message: str) -> None:
    """The body of each error is only {"error": "..."}."""
    reply = send(app, "POST", INFER, json=body)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
    assert message in reply.json()["error"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Overloaded("the queue is full", retry_after_s=2.2), 503, "the queue is full"),
        (DeadlineExceeded("not finished in 5 s"), 504, "not finished in 5 s"),
        (EngineError("the device failed"), 500, "the device failed"),
        (ZeroDivisionError("secret"), 500, "internal error: the server's log says more"),
    ],
)
def test_failures_have_their_status(
    app: Starlette, model: FakeModel, error: Exception, status: int, message: str
) -> None:
    """A full queue and a deadline have different statuses, and an unexpected error's text is not sent."""
    model.error = error
    reply = send(app, "POST", INFER, json=request())
    assert (reply.status_code, reply.json()) == (status, {"error": message})
    assert reply.headers.get("retry-after") == ("3" if status == 503 else None)


def test_an_unforeseen_failure_is_logged_with_its_traceback(
    app: Starlette, model: FakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has an unexpected error with its traceback."""
    model.error = ZeroDivisionError("secret")
    send(app, "POST", INFER, json=request())
    assert "ZeroDivisionError: secret" in caplog.text


def test_every_answer_is_logged_with_its_checkpoint(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which checkpoint answered which task."""
    with caplog.at_level("INFO", "florence"):
        send(app, "POST", INFER, json=request())
    assert "<CAPTION> answered by fake: stop, 3 tokens" in caplog.text


def test_one_failed_row_gives_up_the_others(app: Starlette, model: FakeModel, tmp_path: Path) -> None:
    """A failed row cancels the rows that still wait, since their answers would not be sent."""
    (tmp_path / "OCR").touch()
    model.until = tmp_path  # only this task ends
    rows = request(
        [base64.b64encode(b"no picture").decode()] + [PICTURE] * 20, ["<OCR>"] + ["<CAPTION>"] * 20
    )
    assert send(app, "POST", INFER, json=rows).json()["error"].startswith("row 0: ")
    assert all(call.future.cancelled() for call in model.calls[1:])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/florence2/ready", {"name": "florence2", "ready": True}),
        ("/v2/models/florence2/versions/1/ready", {"name": "florence2", "ready": True}),
    ],
)
def test_health_has_the_open_protocols_body(app: Starlette, path: str, body: dict[str, Any]) -> None:
    """Health replies have the open protocol's body, which KServe's client reads."""
    reply = send(app, "GET", path)
    assert (reply.status_code, reply.json()) == (200, body)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v2"), ("GET", INFER), ("DELETE", "/v2/models/stats")]
)
def test_a_wrong_method_gets_the_right_one(app: Starlette, method: str, path: str) -> None:
    """A wrong method is a 405 with Allow, as HTTP requires."""
    reply = send(app, method, path)
    allowed = "POST" if path == INFER else "GET"
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("missing", ["not loaded", "not warm"])
def test_without_a_ready_model_only_live_is_well(app: Starlette, model: FakeModel, missing: str) -> None:
    """Before the model is loaded and while it stops, only liveness succeeds; ready and infer are a 503
    with Retry-After."""
    model.ready = False
    if missing == "not loaded":
        app.state.repository.find("florence2").model = None
    assert send(app, "GET", "/v2/health/live").status_code == 200
    for method, path in (
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/florence2/versions/1/ready"),
        ("POST", INFER),
    ):
        reply = send(app, method, path)
        assert (reply.status_code, reply.json()) == (503, {"error": "the model is not ready"})
        assert reply.headers["retry-after"] == "1"


def test_metadata_names_inputs_and_output(app: Starlette) -> None:
    """The metadata name the inputs and the output, from which clients generate requests."""
    tensor = {"datatype": "BYTES", "shape": [-1, 1]}
    expected = {
        "name": "florence2",
        "versions": ["1"],
        "platform": "python",
        "inputs": [{"name": name, **tensor} for name in ("INPUT_IMAGE", "TASK_PROMPT", "TEXT_PROMPT")],
        "outputs": [{"name": "PARSED_JSON", **tensor}],
    }
    for path in (
        "/v2/models/florence2",
        "/v2/models/florence2/versions/1",
        "/v2/models/florence2/versions/01",
    ):
        assert send(app, "GET", path).json() == expected
    server = send(app, "GET", "/v2?x=1").json()
    assert set(server) == {"name", "version", "extensions"}


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/nope", 404, "Not Found"),
        ("GET", "/v2/models", 404, "Not Found"),
        ("GET", "/v2/models/florence2/", 404, "Not Found"),
        ("GET", "/v2/Health/live", 404, "Not Found"),
        ("GET", "/v2/models/florence2/versions/abc", 404, "Not Found"),
        ("GET", "/v2/models/florence2/versions/-1", 404, "Not Found"),
        ("GET", "/v2/models/florence2/versions/" + "1" * 30, 400, "failed to get model version"),
        ("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/ready", 400, "Request for unknown model: 'nope' is not found"),
        (
            "GET",
            "/v2/models/florence2/versions/2",
            404,
            "Request for unknown model: 'florence2' version 2 is not found",
        ),
        ("POST", "/v2/models/nope/infer", 404, "Request for unknown model: 'nope' is not found"),
        ("POST", "/v2/models/florence2/versions/97/infer", 404, "version 97 is not found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("POST", "/v2/health/live", 405, "Method Not Allowed"),
        ("GET", INFER, 405, "Method Not Allowed"),
        ("DELETE", INFER, 405, "Method Not Allowed"),
        ("PUT", "/v2/models/florence2/versions/1/infer", 405, "Method Not Allowed"),
    ],
)
def test_paths_and_methods_are_exact(
    app: Starlette, method: str, path: str, status: int, message: str
) -> None:
    """Unknown paths, models, versions and methods have their own errors; an extra slash makes a path
    unknown."""
    reply = send(app, method, path)
    assert reply.status_code == status
    assert message in reply.json()["error"]
    assert list(reply.json()) == ["error"]
