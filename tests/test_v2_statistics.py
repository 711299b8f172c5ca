"""Statistics: each counter counts its event, compute counts agree, and all can be read."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from v2 import INFER, PICTURE, failures, metrics, parse_infer_request, pending, request, send
from waiting import PATIENCE_S, until

from florence.errors import DeadlineExceeded, EngineError, Overloaded
from florence.server.v2.inference import Inference
from florence.server.v2.model import ServedModel
from florence.server.v2.statistics import Reason, Spans, Statistics

NO_PICTURE = base64.b64encode(b"no picture").decode()


def stats(app: Starlette, path: str = "/v2/models/florence2/stats") -> dict[str, Any]:
    """The statistics of the model."""
    (entry,) = send(app, "GET", path).json()["model_stats"]
    assert (entry["name"], entry["version"]) == ("florence2", "1")
    return dict(entry)


def counts(app: Starlette) -> dict[str, int]:
    """The counts that are not zero."""
    return {name: part["count"] for name, part in stats(app)["inference_stats"].items() if part["count"]}


def test_an_answered_request_counts_once_and_its_rows_apart(app: Starlette) -> None:
    """A request of three rows adds three rows and one of each other counter, in the entry of its batch
    size."""
    assert stats(app)["batch_stats"] == []
    assert send(app, "POST", INFER, json=request([PICTURE] * 3, ["<OD>"] * 3)).status_code == 200
    entry = stats(app)
    assert (entry["inference_count"], entry["execution_count"]) == (3, 1)
    answered = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert counts(app) == dict.fromkeys(answered, 1)
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in entry["batch_stats"]] == [
        (3, 1)
    ]
    assert entry["last_inference"] > 1_500_000_000_000
    assert entry["inference_stats"]["success"]["ns"] == sum(
        entry["inference_stats"][part]["ns"] for part in answered[1:]
    )


@pytest.mark.parametrize(
    ("error", "body", "reason"),
    [
        (None, request(["%%%"]), Reason.BACKEND),
        (None, request([NO_PICTURE]), Reason.BACKEND),
        (None, request(tasks=["<NOPE>"]), Reason.BACKEND),
        (None, request(texts=["x" * 70_000]), Reason.BACKEND),
        (EngineError("failed"), request(), Reason.BACKEND),
        (Overloaded("full"), request(), Reason.REJECTED),
        (DeadlineExceeded("late"), request(), Reason.REJECTED),
        (ZeroDivisionError("secret"), request(), Reason.OTHER),
    ],
)
def test_a_failure_counts_with_its_reason(
    app: Starlette, model: FakeModel, error: Exception | None, body: Any, reason: Reason
) -> None:
    """A failure counts only under its reason; bad base64 and text are the model's errors, as in Triton."""
    model.error = error
    assert send(app, "POST", INFER, json=body).status_code >= 400
    assert counts(app) == {"fail": 1}
    assert stats(app)["inference_count"] == 0
    values = metrics(app.state.repository.find("florence2").statistics)
    failures = {
        name[1]: value for name, value in values.items() if name[0].startswith("nv_inference_request_f")
    }
    assert failures == {other.value: float(other is reason) for other in Reason}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        json.dumps({"inputs": []}).encode(),
        json.dumps(request(outputs=[{"name": "NOPE"}])).encode(),
        json.dumps(request(parameters={"num_beams": 99})).encode(),
        json.dumps(request([PICTURE] * 37, ["<OD>"] * 37)).encode(),
    ],
)
def test_what_is_refused_unread_changes_nothing(app: Starlette, body: bytes) -> None:
    """A malformed body and wrong inputs, outputs or options change no counter."""
    before = stats(app)
    assert send(app, "POST", INFER, content=body).status_code == 400
    assert stats(app) == before


def test_a_client_that_leaves_is_counted_and_no_longer_pending(model: FakeModel) -> None:
    """A request is pending until its client leaves, and then counts as CANCELED."""
    model.held = True
    inference = Inference(PATIENCE_S)
    inference.model = model
    infer = parse_infer_request(json.dumps(request()).encode())

    async def left() -> None:
        task = asyncio.ensure_future(inference.answer(infer, len))
        await until(lambda: model.calls)
        assert pending(inference) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(left())
    assert failures(inference) == {"CANCELED": 1}
    assert pending(inference) == 0


@given(st.lists(st.tuples(st.integers(1, 36), *[st.integers(0, 10**12)] * 4) | st.sampled_from(Reason)))
def test_statistics_and_metrics_agree(story: list[Any]) -> None:
    """For any events the sums are right, the compute counts agree, and Prometheus reads the same numbers."""
    statistics = Statistics(ServedModel())
    answered = [event for event in story if isinstance(event, tuple)]
    for event in story:
        statistics.begin()
        if isinstance(event, tuple):
            statistics.succeed(event[0], Spans(*event[1:]))
        else:
            statistics.fail_for(event, 5)
    entry = statistics.as_dict()
    parts = entry["inference_stats"]
    assert entry["inference_count"] == sum(rows for rows, *_ in answered)
    assert {parts[name]["count"] for name in parts if name.startswith("compute")} == {len(answered)}
    assert sum(batch["compute_infer"]["ns"] for batch in entry["batch_stats"]) == parts["compute_infer"]["ns"]
    values = metrics(statistics)
    assert values["nv_inference_request_success_total", ""] == len(answered)
    assert values["nv_inference_count_total", ""] == entry["inference_count"]
    assert values["nv_inference_compute_infer_duration_us_total", ""] == parts["compute_infer"]["ns"] // 1000
    assert values["nv_inference_pending_request_count", ""] == 0


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v2/models/nope/stats", 400, "requested model 'nope' is not available"),
        ("/v2/models/florence2/versions/97/stats", 400, "requested model version is not available for model"),
        ("/v2/models/florence2/versions/abc/stats", 404, "Not Found"),
    ],
)
def test_unknown_models_have_no_statistics(app: Starlette, path: str, status: int, message: str) -> None:
    """An unknown model gets Triton's words for this path, which differ from other paths'."""
    reply = send(app, "GET", path)
    assert reply.status_code == status
    assert message in reply.json()["error"]


def test_all_paths_give_the_same_statistics(app: Starlette) -> None:
    """The paths with a version, without, and for all models give the same statistics."""
    send(app, "POST", INFER, json=request())
    entry = stats(app)
    assert stats(app, "/v2/models/stats") == entry
    assert stats(app, "/v2/models/florence2/versions/1/stats") == entry
