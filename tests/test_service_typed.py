"""The typed endpoints with a fake model: uploads, JSON, every kind of mistake, and their document."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_model import FakeModel
from pictures import drawn, saved
from starlette.testclient import TestClient

from florence.errors import Overloaded
from florence.types.answer import TaskAnswer
from florence.types.results import Detections, Segmentation
from florence.types.tasks import TASKS, Input, Kind, Task

PICTURE = saved(drawn(64, 48))
BASE64 = base64.b64encode(PICTURE).decode()


def _input(task: Task) -> dict[str, Any]:
    """The input that a task needs."""
    if task.input is Input.TEXT:
        return {"text": "a green car"}
    return {"region": [1, 2, 30.5, 40]} if task.input is Input.REGION else {}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_each_task_answers_json_with_its_kind_of_result(
    client: TestClient, served: FakeModel, task: Task
) -> None:
    """POST /<name> with a base64 picture gives the task's own type of result, without tokens."""
    reply = client.post(f"/{task.name}", json={"image": BASE64, "num_beams": 2, **_input(task)})
    assert reply.status_code == 200
    answer = reply.json()
    kinds = {"boxes", "polygons"} if task.kind is Kind.BOXES_OR_POLYGONS else {task.kind.value}
    assert answer["result"]["kind"] in kinds
    assert answer["task"] == task.token
    assert answer["checkpoint"] == "fake"
    assert answer["image_size"] == {"width": 64, "height": 48}
    assert set(answer) == set(TaskAnswer.model_fields)
    (call,) = served.calls
    assert (call.image, call.task, call.options["num_beams"]) == (PICTURE, task.token, 2)
    assert call.text == _input(task).get("text")


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_each_task_takes_an_upload(client: TestClient, served: FakeModel, task: Task) -> None:
    """Each task accepts a form with an upload."""
    fields = {name: str(value).strip("[]") for name, value in _input(task).items()}
    reply = client.post(
        f"/{task.name}", files={"image": ("a.png", PICTURE)}, data={**fields, "max_new_tokens": "7"}
    )
    assert reply.status_code == 200, reply.text
    (call,) = served.calls
    assert (call.image, call.options["max_new_tokens"]) == (PICTURE, 7)


@pytest.mark.parametrize("content_type", ["image/jpg", "image/png", "text/plain", "application/x-nonsense"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_format_is_detected_from_the_bytes(client: TestClient, content_type: str, kind: str) -> None:
    """The format is detected from the bytes; an upload's content type is ignored."""
    files = {"image": ("a.png", saved(drawn(64, 48), kind), content_type)}
    assert client.post("/caption", files=files).status_code == 200


@pytest.mark.parametrize(
    "image", [BASE64, "data:image/png;base64," + BASE64, BASE64[:40] + "\n" + BASE64[40:]]
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", None]
)
def test_json_is_taken_under_any_content_type(
    client: TestClient, served: FakeModel, image: str, content_type: str | None
) -> None:
    """JSON is accepted under any content type, as `curl -d` sends it, with data URIs and broken lines."""
    headers = {"content-type": content_type} if content_type else {}
    reply = client.post("/caption", content=json.dumps({"image": image}), headers=headers)
    assert reply.status_code == 200, reply.text
    assert served.calls[0].image == PICTURE


@pytest.mark.parametrize("path", ["/caption", "/ocr_with_region", "/prompt", "/analyze"])
def test_a_picture_in_the_wrong_place_gets_an_error_with_the_right_one(client: TestClient, path: str) -> None:
    """A picture with a wrong content type or field name gets an error with the right one."""
    picture = saved(drawn(400, 300))
    alone = client.post(path, content=picture, headers={"content-type": "application/x-www-form-urlencoded"})
    named = client.post(path, files={"picture": picture})
    assert (alone.status_code, named.status_code) == (400, 400)
    assert "image/jpeg: it is a picture whose Content-Type says something else" in alone.json()["error"]
    assert named.json()["error"] == "picture holds a picture; the field for the picture is image"


def test_base64_may_stand_in_a_form(client: TestClient, served: FakeModel) -> None:
    """A form may have the picture as base64 text."""
    reply = client.post("/ocr", files={"image": (None, BASE64)})
    assert reply.status_code == 200, reply.text
    assert served.calls[0].image == PICTURE


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("a cat", "a cat"),
        ('"EXIT"', '"EXIT"'),
        ("123", "123"),
        ("null", "null"),
        ("true", "true"),
        (" two\nlines ", " two\nlines "),
        ("[1]", "[1]"),
        ('say "hi"', 'say "hi"'),
        ("eine große Katze 猫", "eine große Katze 猫"),
    ],
)
def test_a_forms_text_is_taken_as_it_is(client: TestClient, served: FakeModel, sent: str, text: str) -> None:
    """A form's text is used unchanged, even if it looks like JSON."""
    files = {"image": ("a.png", PICTURE)}
    reply = client.post("/caption_to_phrase_grounding", files=files, data={"text": sent})
    assert reply.status_code == 200, reply.text
    assert served.calls[0].text == text


@pytest.mark.parametrize("text", ["a cat", '"EXIT"', "null", "123"])
def test_bentomls_client_writes_a_forms_text_in_json(
    client: TestClient, served: FakeModel, text: str
) -> None:
    """A form's text from BentoML's client is JSON, and only the client's name shows that."""
    reply = client.post(
        "/caption_to_phrase_grounding",
        files={"image": ("a.png", PICTURE)},
        data={"text": json.dumps(text)},
        headers={"User-Agent": "BentoML HTTP Client/1.4.0"},
    )
    assert reply.status_code == 200, reply.text
    assert served.calls[0].text == text


def test_a_form_may_say_that_the_search_never_stops_early(client: TestClient, served: FakeModel) -> None:
    """A form may set early_stopping to never."""
    for value in ("never", '"never"'):  # as curl sends it, and as our client does
        files = {"image": ("a.png", PICTURE)}
        reply = client.post("/ocr", files=files, data={"early_stopping": value})
        assert reply.status_code == 200, reply.text
        assert served.calls.pop().options["early_stopping"] == "never"


@pytest.mark.parametrize(
    ("region", "given"),
    [
        ([1, 2, 30.5, 40], [1.0, 2.0, 30.5, 40.0]),
        ("<loc_1><loc_2><loc_300><loc_400>", "<loc_1><loc_2><loc_300><loc_400>"),
        ("1, 2, 30, 40", "1, 2, 30, 40"),
    ],
)
def test_regions_are_pixels_or_locations(
    client: TestClient, served: FakeModel, region: Any, given: Any
) -> None:
    """A region of four numbers or of text reaches the model unchanged."""
    assert client.post("/region_to_ocr", json={"image": BASE64, "region": region}).status_code == 200
    assert served.calls[0].options["region"] == given


MISTAKES: list[tuple[str, Any, int, str]] = [
    ("caption", {}, 400, "image is missing"),
    ("caption", {"image": None}, 400, "image: must be base64 text"),
    ("caption", {"image": 5}, 400, "image: must be base64 text"),
    ("caption", {"image": ""}, 400, "the picture is empty"),
    ("caption", {"image": "%%%"}, 400, "the picture is not valid base64"),
    ("caption", {"image": "http://127.0.0.1:1/a.png"}, 400, "not fetched from a URL"),
    ("caption", {"image": "/etc/passwd"}, 400, "the picture is not valid base64"),
    ("caption", {"image": base64.b64encode(b"no picture").decode()}, 400, "not a picture in a known format"),
    ("caption", {"image": base64.b64encode(PICTURE[:60]).decode()}, 400, ""),
    (
        "caption",
        {"image": BASE64, "num_beam": 2},
        400,
        "unknown field 'num_beam'; the fields are image, image_url, num_beams",
    ),
    ("caption", {"image": BASE64, "num_beams": 9}, 400, "num_beams must be an integer from 1 to 8, got 9"),
    ("caption", {"image": BASE64, "num_beams": True}, 400, "num_beams must be an integer from 1 to 8"),
    ("caption", {"image": BASE64, "length_penalty": "x"}, 400, "length_penalty must be a number from"),
    (
        "caption",
        {"image": BASE64, "max_new_tokens": 5, "min_new_tokens": 9},
        400,
        "min_new_tokens must not be above",
    ),
    ("caption", {"image": BASE64, "text": "a car"}, 400, "<CAPTION> takes no text"),
    ("caption", {"image": BASE64, "region": [1, 2, 3, 4]}, 400, "<CAPTION> takes no region"),
    ("caption_to_phrase_grounding", {"image": BASE64}, 400, "<CAPTION_TO_PHRASE_GROUNDING> needs a text"),
    ("caption_to_phrase_grounding", {"image": BASE64, "text": " "}, 400, "needs a text"),
    (
        "caption_to_phrase_grounding",
        {"image": BASE64, "text": 5},
        400,
        "text: input should be a valid string, got 5",
    ),
    (
        "caption_to_phrase_grounding",
        {"image": BASE64, "text": "x" * 65_537},
        400,
        "text: string should have at most 65536 characters",
    ),
    ("caption_to_phrase_grounding", {"image": BASE64, "text": "\ud800"}, 400, "text: "),
    ("caption_to_phrase_grounding", {"image": BASE64, "text": "a <OD>"}, 400, "not contain a task token"),
    ("region_to_category", {"image": BASE64}, 400, '"region": [34, 160, 597, 372]'),
    (
        "region_to_category",
        {"image": BASE64, "region": [1, 2, 3]},
        400,
        "<REGION_TO_CATEGORY> needs a region",
    ),
    ("region_to_category", {"image": BASE64, "region": [5, 5, 5, 5]}, 400, "is empty"),
    ("region_to_category", {"image": BASE64, "region": [0, 0, 999, 999]}, 400, "not inside the picture"),
    ("region_to_category", {"image": BASE64, "region": "<loc_1>"}, 400, "is not four locations"),
    ("region_to_category", {"image": BASE64, "text": "x"}, 400, "takes nothing else"),
    ("caption", [1], 400, "the body must be a JSON object"),
    ("caption", "x", 400, "the body must be a JSON object"),
]


@pytest.mark.parametrize(("name", "body", "status", "message"), MISTAKES)
def test_mistakes_are_answered_with_what_is_allowed(
    client: TestClient, name: str, body: Any, status: int, message: str
) -> None:
    """A mistake is one sentence in {"error": ...} that names the field and the allowed values."""
    reply = client.post(f"/{name}", content=json.dumps(body))
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    assert message in reply.json()["error"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "message"),
    [
        (b"", "application/json", 400, "image is missing"),
        (b"{", "application/json", 400, "a picture with Content-Type: image/jpeg: failed to parse"),
        (PICTURE, "text/plain", 400, "a JSON object, multipart/form-data, or a picture"),
        (b"--x", "multipart/form-data", 400, "not valid multipart/form-data: Missing boundary"),
        (b"garbage", "multipart/form-data; boundary=x", 400, ""),
        (b"x" * 200_001, "application/json", 413, "larger than the 200000 bytes allowed"),
        (b"x", "application/vnd.bentoml+pickle", 415, "not allowed"),
    ],
)
def test_bodies_that_are_no_input_are_refused(
    client: TestClient, content: bytes, content_type: str, status: int, message: str
) -> None:
    """A body that is neither JSON nor a form, too long, or a pickle is refused."""
    reply = client.post("/caption", content=content, headers={"content-type": content_type})
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    assert message in reply.json()["error"]


def test_a_field_sent_twice_is_refused(client: TestClient) -> None:
    """A field sent twice is refused, since one would be lost."""
    files = [("image", ("a.png", PICTURE)), ("image", ("b.png", PICTURE))]
    reply = client.post("/caption", files=files)
    assert (reply.status_code, reply.json()["error"]) == (400, "image is sent 2 times; send it once")


def test_overload_says_when_to_come_back(client: TestClient, served: FakeModel) -> None:
    """A full queue is a 503 with Retry-After in the format of all errors."""
    served.error = Overloaded("256 requests wait already", retry_after_s=4)
    reply = client.post("/caption", json={"image": BASE64})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "4")
    assert reply.json() == {"error": "256 requests wait already"}


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/caption", 405, "Method Not Allowed"),
        ("POST", "/nope", 404, "Not Found"),
        ("GET", "/v2/nope", 404, "Not Found"),
        ("GET", "/v2/", 404, "Not Found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
    ],
)
def test_unknown_paths_and_methods_have_the_same_shape(
    client: TestClient, method: str, path: str, status: int, message: str
) -> None:
    """Unknown paths and methods get JSON errors, not the framework's plain text."""
    reply = client.request(method, path)
    assert (reply.status_code, reply.json()) == (status, {"error": message})


def test_a_client_error_leaves_no_traceback_in_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A client's mistake leaves no traceback in the log."""
    client.post("/caption", json={"image": "%%%", "num_beams": 99})
    assert "Traceback" not in caplog.text


def test_the_document_shows_each_task_with_examples(client: TestClient) -> None:
    """/docs.json has each task's inputs and errors, with examples that are accepted."""
    document = client.get("/docs.json").json()
    for task in TASKS.values():
        operation = document["paths"][f"/{task.name}"]["post"]
        content = operation["requestBody"]["content"]
        assert list(content) == ["multipart/form-data", "application/json", "image/*"]
        example = content["application/json"]["example"]
        reply = client.post(f"/{task.name}", json=example)
        assert reply.status_code == 200, reply.text
        answer = operation["responses"]["200"]["content"]["application/json"]["example"]
        assert answer["task"] == task.token
        assert set(answer) == set(reply.json())
        kinds = {"boxes": Detections, "polygons": Segmentation}
        if answer["result"]["kind"] in kinds:
            kinds[answer["result"]["kind"]].model_validate(answer["result"])
        errors = {
            status: _error_example(operation, status) for status in ("400", "401", "413", "500", "503", "504")
        }
        assert len(set(errors.values())) == 6
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(_references(document)) <= names


def _error_example(operation: Any, status: str) -> str:
    """The example of an error in the document."""
    (content,) = operation["responses"][status]["content"].values()
    error = content["example"]["error"]
    assert isinstance(error, str)
    return error


def _references(node: Any) -> Iterator[str]:
    """All references in the document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_the_documents_v2_example_is_answered(client: TestClient) -> None:
    """The document's v2 example is answered."""
    document = client.get("/docs.json").json()
    operation = document["paths"]["/v2/models/florence2/infer"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    reply = client.post("/v2/models/florence2/infer", json=example)
    assert reply.status_code == 200, reply.text
    assert set(reply.json()) == set(operation["responses"]["200"]["content"]["application/json"]["example"])
