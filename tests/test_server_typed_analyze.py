"""`/analyze` with a fake model: answers in order, each failure in its place."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from fake_model import FakeModel
from pictures import drawn, saved
from starlette.testclient import TestClient

from florence.errors import Overloaded
from florence.types.analysis import MOST_TASKS, Analysis, TaskFailure
from florence.types.tasks import TASKS, Input

PICTURE = saved(drawn(64, 48))
BASE64 = base64.b64encode(PICTURE).decode()


def every_task() -> list[dict[str, Any]]:
    """A request for each task."""
    given = {Input.TEXT: {"text": "a green car"}, Input.REGION: {"region": [1, 2, 30, 40]}, Input.NONE: {}}
    return [{"task": task.name, **given[task.input]} for task in TASKS.values()]


def test_all_tasks_of_one_picture_are_answered_in_their_order(client: TestClient, served: FakeModel) -> None:
    """Tasks by token or name are answered in order, and options apply to all."""
    asks = [*every_task(), {"task": "<CAPTION>"}]
    reply = client.post("/analyze", json={"image": BASE64, "tasks": asks, "num_beams": 2})
    assert reply.status_code == 200, reply.text
    analysis = Analysis.model_validate(reply.json())
    assert [answer.task for answer in analysis.answers] == [*TASKS, "<CAPTION>"]
    assert {call.image for call in served.calls} == {PICTURE}
    assert {call.options["num_beams"] for call in served.calls} == {2}


def test_a_name_alone_stands_for_a_task(client: TestClient) -> None:
    """A task may be just a name or token, in JSON and in a form, beside tasks with a text."""
    tasks = ["caption", "<OD>", {"task": "caption_to_phrase_grounding", "text": "a car"}]
    in_json = client.post("/analyze", json={"image": BASE64, "tasks": tasks})
    form = {"files": {"image": ("a.png", PICTURE)}, "data": {"tasks": json.dumps(tasks)}}
    for reply in (in_json, client.post("/analyze", **form)):
        assert reply.status_code == 200, reply.text
        answers = Analysis.model_validate(reply.json()).answers
        assert [answer.task for answer in answers] == ["<CAPTION>", "<OD>", "<CAPTION_TO_PHRASE_GROUNDING>"]


def test_a_form_holds_the_tasks_as_json(client: TestClient) -> None:
    """A form has the tasks as JSON."""
    tasks = json.dumps(every_task())
    reply = client.post("/analyze", files={"image": ("a.png", PICTURE)}, data={"tasks": tasks})
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["answers"]) == len(TASKS)


def test_a_task_that_fails_has_its_error_in_its_place(client: TestClient) -> None:
    """A failed task has its error and status in its place among the answers."""
    asks = [{"task": "caption"}, {"task": "caption", "text": "a car"}, {"task": "nonsense"}, {"task": "ocr"}]
    reply = client.post("/analyze", json={"image": BASE64, "tasks": asks})
    assert reply.status_code == 200
    answers = Analysis.model_validate(reply.json()).answers
    assert [isinstance(answer, TaskFailure) for answer in answers] == [False, True, True, False]
    assert reply.json()["answers"][1]["status"] == 400
    assert "takes no" in reply.json()["answers"][1]["error"]


def test_where_nothing_can_be_answered_the_reply_is_the_error(client: TestClient, served: FakeModel) -> None:
    """If all tasks fail, the reply is the error: 400 for a broken picture, 503 with Retry-After for a full
    queue."""
    asks = [{"task": "caption"}, {"task": "ocr"}]
    no_picture = base64.b64encode(b"no picture").decode()
    assert client.post("/analyze", json={"image": no_picture, "tasks": asks}).status_code == 400
    served.error = Overloaded("too many", retry_after_s=7)
    reply = client.post("/analyze", json={"image": BASE64, "tasks": asks})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"image": BASE64}, "tasks is missing"),
        ({"image": BASE64, "tasks": []}, "1 to 64"),
        ({"image": BASE64, "tasks": "caption"}, "tasks can't be 'caption'"),
        ({"image": BASE64, "tasks": [{"task": 1}]}, "tasks.0.task can't be 1"),
        ({"image": BASE64, "tasks": ["ocr", 5]}, "tasks.1 can't be 5"),
        (
            {"image": BASE64, "tasks": [{"task": "region_to_ocr", "region": [1, 2]}]},
            "tasks.0.region can't be",
        ),
        ({"image": BASE64, "tasks": [{"text": "a"}]}, "tasks.0.task is missing"),
        ({"image": BASE64, "tasks": [{"task": "ocr", "nope": 1}]}, "tasks.0.nope is unknown"),
        ({"image": BASE64, "tasks": [{"task": "ocr"}] * (MOST_TASKS + 1)}, "1 to 64"),
        ({"image": BASE64, "tasks": [{"task": "ocr"}], "num_beams": 99}, "num_beams must be an integer"),
        ({"image": BASE64, "tasks": [{"task": "ocr"}], "beams": 9}, "unknown field 'beams'"),
        ({"tasks": [{"task": "ocr"}]}, "image is missing"),
        ({"image": BASE64, "tasks": [{"task": "ocr", "text": "a", "region": [0, 0, 1, 1]}]}, "both text and"),
    ],
)
def test_what_is_wrong_with_the_call_is_said(client: TestClient, body: dict[str, Any], message: str) -> None:
    """A wrong call is a 400 with a readable message, without pydantic's terms."""
    reply = client.post("/analyze", json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert message in error
    assert not any(word in error for word in ("Input should", "valid dictionary", "AnalysisTask", "pydantic"))


def test_the_document_describes_it(client: TestClient) -> None:
    """The document's example is answered, and an example answer is shown."""
    document = client.get("/docs.json").json()
    operation = document["paths"]["/analyze"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/analyze", json=example).status_code == 200
    assert operation["responses"]["200"]["content"]["application/json"]["example"]["answers"]
