"""Custom prompts and declared tasks at the service's endpoints, with a fake model."""

from __future__ import annotations

import asyncio
import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fake_model import RESULT, FakeModel
from grpc_calls import caption, listening
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tritonclient.grpc import service_pb2_grpc
from v2 import request, send
from waiting import PATIENCE_S

from florence.errors import TaskError
from florence.images.limits import DEFAULT_LIMITS
from florence.server.fetching.fetcher import fetcher_of
from florence.server.typed.task_paths import task_route
from florence.server.v2.http_app import V2App
from florence.server.v2.inference import Inference, ModelRepository
from florence.server.v2.prompts import AcceptedPrompts
from florence.settings import Settings
from florence.types.tasks import TASKS, Kind, prompt_task

ROWS = [
    {"token": "<GENERATE_TAGS>", "name": "generate_tags", "kind": "tags"},
    {"token": "<DocVQA>", "name": "docvqa", "input": "text", "kind": "json"},
    {"token": "<SCAN>", "name": "scan", "input": "region", "prompt": "What is in {input}?", "kind": "boxes"},
]
GIVEN: dict[str, dict[str, Any]] = {"docvqa": {"text": "Total?"}, "scan": {"region": [1, 2, 30, 40]}}
INFER = "/v2/models/florence2/infer"


def _picture() -> bytes:
    """A small PNG."""
    file = BytesIO()
    Image.new("RGB", (64, 48), "green").save(file, "PNG")
    return file.getvalue()


PICTURE = _picture()
BASE64 = base64.b64encode(PICTURE).decode()


@pytest.fixture
def declared(served: FakeModel) -> FakeModel:
    """The service's model, with declared tasks."""
    served.own = ROWS
    return served


@pytest.mark.parametrize("kind", Kind)
def test_a_prompt_is_answered_as_it_is_asked_for(client: TestClient, served: FakeModel, kind: Kind) -> None:
    """A prompt's answer has the requested kind, in JSON and as an upload."""
    body = {"image": BASE64, "prompt": "Find <it> {all}", "answer_as": kind.value, "num_beams": 2}
    uploaded = {name: str(value) for name, value in body.items() if name != "image"}
    replies = [
        client.post("/prompt", json=body),
        client.post("/prompt", files={"image": ("a.png", PICTURE)}, data=uploaded),
    ]
    for reply, call in zip(replies, served.calls, strict=True):
        assert reply.status_code == 200, reply.text
        assert reply.json()["task"] == "Find <it> {all}"
        assert reply.json()["result"] == RESULT[kind].model_dump(mode="json")
        assert call.asked == prompt_task("Find <it> {all}", kind)
        assert call.options["num_beams"] == 2


@pytest.mark.parametrize("prompt", ["123", '{"a": 1}', "null", '"x"', " <OD> \n"])
def test_a_forms_prompt_is_taken_as_it_is(client: TestClient, served: FakeModel, prompt: str) -> None:
    """A form's prompt is always a text, even if it looks like JSON."""
    reply = client.post("/prompt", files={"image": ("a.png", PICTURE)}, data={"prompt": prompt})
    assert reply.status_code == 200, reply.text
    assert served.calls[0].asked == prompt_task(prompt)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt is missing"),
        ({"prompt": " \n"}, "a prompt is a text that is not blank"),
        ({"prompt": 5}, "prompt: input should be a valid string, got 5"),
        ({"prompt": "x" * 65_537}, "prompt: string should have at most 65536 characters"),
        ({"prompt": "x", "answer_as": "xml"}, "answer_as: input should be 'text', 'tags', 'json', 'boxes'"),
        (
            {"prompt": "x", "text": "y"},
            "unknown field 'text'; the fields are image, image_url, prompt, answer_as",
        ),
        (
            {"prompt": "x", "do_sample": True, "num_beams": 3},
            "do_sample draws one answer",
        ),
        ({"prompt": "x", "temperature": 0.5}, "temperature: nothing is drawn without do_sample=true"),
        ({"prompt": "x", "do_sample": True, "top_p": 2}, "top_p must be a number from 0 to 1, got 2"),
    ],
)
def test_mistakes_in_a_prompts_request_are_named(
    client: TestClient, body: dict[str, Any], message: str
) -> None:
    """A mistake in a prompt's request is a 400 that names it."""
    reply = client.post("/prompt", json={"image": BASE64, **body})
    assert reply.status_code == 400
    assert message in reply.json()["error"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_each_declared_task_has_its_path_and_its_entry(
    client: TestClient, declared: FakeModel, row: dict[str, Any]
) -> None:
    """A declared task has a path and an entry in the document with a valid example, for as long as it is
    declared."""
    path = f"/tasks/{row['name']}"
    sent = {"image": BASE64, **GIVEN.get(row["name"], {})}
    reply = client.post(path, json=sent)
    assert reply.status_code == 200, reply.text
    assert reply.json()["task"] == row["token"]
    assert reply.json()["result"]["kind"] == row["kind"]
    forms = {name: json.dumps(value) if name == "region" else value for name, value in sent.items()}
    assert client.post(path, files={"image": ("a.png", PICTURE)}, data={**forms, "image": []}).json() == {
        **reply.json()
    }
    document = client.get("/docs.json").json()
    operation = document["paths"][path]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert client.post(path, json=example).status_code == 200
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].removeprefix("#/components/schemas/") in document["components"]["schemas"]
    declared.own = []
    assert path not in client.get("/docs.json").json()["paths"]
    assert client.get("/info").json()["declared_tasks"] == []


def test_operations_have_names_of_their_own(client: TestClient, declared: FakeModel) -> None:
    """Operation ids are unique, also with a declared task named like an endpoint."""
    declared.own = [*ROWS, {"token": "<ANALYZE>", "name": "analyze"}]
    paths = client.get("/docs.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations if "operationId" in operation]
    assert len(set(names)) == len(names)
    assert {"prompt", "analyze", "tasks_analyze"} <= set(names)


def test_a_path_of_no_task_says_what_was_meant(client: TestClient, declared: FakeModel) -> None:
    """An unknown task's path is a 404 with a suggestion; built-in tasks have a path there too."""
    reply = client.post("/tasks/generate-tag", json={"image": BASE64})
    assert reply.status_code == 404
    assert "did you mean <GENERATE_TAGS> or generate_tags" in reply.json()["error"]
    assert "send it to /prompt" in reply.json()["error"]
    assert client.post("/tasks/caption", json={"image": BASE64}).json()["task"] == "<CAPTION>"
    assert client.get("/tasks/caption").status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("generate_tags", {}, "image is missing"),
        ("generate_tags", {"image": BASE64, "text": "x"}, "<GENERATE_TAGS> takes no text; leave it out"),
        ("docvqa", {"image": BASE64}, "<DocVQA> needs a text"),
        ("scan", {"image": BASE64, "region": [0, 0, 999, 1]}, "not inside the picture"),
    ],
)
def test_mistakes_are_those_of_the_built_in_tasks(
    client: TestClient, declared: FakeModel, path: str, body: dict[str, Any], message: str
) -> None:
    """A mistake at a declared task gets the same error as at a built-in one."""
    reply = client.post(f"/tasks/{path}", json=body)
    assert (reply.status_code, message in reply.json()["error"]) == (400, True), reply.text


def test_before_a_model_is_loaded_a_task_comes_back_later() -> None:
    """Before the model is loaded, a task's path is a 503 with Retry-After."""
    app = Starlette(routes=[task_route(Inference(PATIENCE_S), fetcher_of(Settings()), DEFAULT_LIMITS)])
    reply = send(app, "POST", "/tasks/caption", json={})
    assert reply.status_code == 503
    assert reply.headers["retry-after"]


def test_analyze_takes_declared_tasks(client: TestClient, declared: FakeModel) -> None:
    """/analyze accepts declared tasks."""
    tasks = ["generate_tags", {"task": "<DocVQA>", "text": "Total?"}, {"task": "docvqaa"}]
    answers = client.post("/analyze", json={"image": BASE64, "tasks": tasks}).json()["answers"]
    assert [answer.get("result", {}).get("kind") for answer in answers] == ["tags", "json", None]
    assert "did you mean <DocVQA> or docvqa" in answers[2]["error"]


def test_a_drawn_seed_is_in_the_answer(client: TestClient, served: FakeModel) -> None:
    """An answer has the random seed, or the one that was sent; without sampling it has none."""
    body = {"image": BASE64, "do_sample": True}
    drawn = [client.post("/caption", json=body).json()["seed"] for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert client.post("/caption", json={**body, "seed": 7}).json()["seed"] == 7
    assert client.post("/caption", json={"image": BASE64}).json()["seed"] is None


def v2_app(model: FakeModel, *, any_prompt: bool = False) -> Starlette:
    """The v2 routes with this model."""
    inference = Inference(PATIENCE_S, any_prompt=any_prompt)
    inference.model = model  # type: ignore[assignment]
    return V2App(ModelRepository([inference]), 10_000_000)


def infer(app: Starlette, prompt: str, text: str | None = None, **parameters: Any) -> Any:
    """The reply to a v2 request with this prompt."""
    body = request(tasks=[prompt], texts=None if text is None else [text], parameters=parameters)
    return send(app, "POST", INFER, json=body)


def answer_of(reply: Any) -> Any:
    """The original's JSON in a v2 reply."""
    return json.loads(reply.json()["outputs"][0]["data"][0])


def test_v2_answers_declared_tasks(model: FakeModel) -> None:
    """v2 answers a declared task under its token: text for tags and JSON, boxes for others."""
    model.own = ROWS
    app = v2_app(model)
    assert answer_of(infer(app, "<GENERATE_TAGS>")) == {"<GENERATE_TAGS>": "a, fake"}
    assert answer_of(infer(app, "<DocVQA>", "Total?")) == {"<DocVQA>": '{"a": "fake"}'}
    assert answer_of(infer(app, "<SCAN>", "<loc_1><loc_2><loc_30><loc_40>"))["<SCAN>"]["labels"] == ["fake"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("<GENERATE_TAG>", "did you mean <GENERATE_TAGS> or generate_tags"),
        ("<CAPTON>", "did you mean <CAPTION> or caption"),
        ("<MIXED_CAPTION>", "declare a task (FLORENCE_TASKS=promptgen has it)"),
        ("Describe it.", "FLORENCE_PROMPTS=any"),
        ("<CAPTION_TO_PHRASE_GROUNDING>a red moon", "send <CAPTION_TO_PHRASE_GROUNDING> as the task"),
    ],
)
def test_v2_refuses_another_prompt_with_the_ways_out(model: FakeModel, prompt: str, words: str) -> None:
    """v2 refuses an unknown prompt over HTTP and gRPC, with a suggestion and the settings to change."""
    model.own = ROWS[:1]
    reply = infer(v2_app(model), prompt)
    assert reply.status_code == 400
    assert words in reply.json()["error"]
    assert "FLORENCE_TASKS" in reply.json()["error"]
    assert "FLORENCE_PROMPTS=any" in reply.json()["error"]
    assert model.calls == []

    async def over_grpc() -> str:
        async with listening(model) as (channel, _):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                await stub.ModelInfer(caption(task=prompt.encode()))
            except Exception as error:  # noqa: BLE001
                return str(error)
        return ""

    assert words in asyncio.run(over_grpc())


def test_a_wrong_row_among_others_is_named(model: FakeModel) -> None:
    """An error in one of several rows names the row."""
    body = request(images=[BASE64] * 2, tasks=["<OCR>", "<NONE>"])
    reply = send(v2_app(model), "POST", INFER, json=body)
    assert reply.json()["error"].startswith("row 1: unknown task '<NONE>'")


@pytest.mark.parametrize("path", ["/v2/models/florence2/generate", "/v2/models/florence2/generate_stream"])
def test_any_prompt_is_answered_in_text_under_itself(model: FakeModel, path: str) -> None:
    """With the setting, any prompt is answered as text under itself, by infer, generate and
    generate_stream."""
    app = v2_app(model, any_prompt=True)
    assert answer_of(infer(app, "<DocVQA>", "Total?")) == {"<DocVQA>": "a fake"}
    (call,) = model.calls
    assert call.asked is not None
    assert (call.asked.prompt, call.text, call.asked.no_repeat_ngram_size) == ("<DocVQA>Total?", None, 0)
    assert list(answer_of(infer(app, "<OD>"))["<OD>"]) == ["bboxes", "labels"]
    assert infer(app, "<OD>", "extra").status_code == 400
    body = {"INPUT_IMAGE": BASE64, "TASK_PROMPT": "Describe it.", "num_beams": 1}
    reply = send(app, "POST", path, json=body)
    last = json.loads(reply.text.removesuffix("\n\n").rsplit("data: ")[-1])
    assert json.loads(last["PARSED_JSON"]) == {"Describe it.": "a fake"}
    assert ("text_output" in reply.text) is path.endswith("stream")


def test_any_prompt_becomes_the_originals_sentence(shared: Path) -> None:
    """Any prompt gives the sentence of Microsoft's processor, or is refused where it refuses; its text may
    be sent separately."""
    cases: list[dict[str, Any]] = json.loads((shared / "goldens/A/golden.json").read_text())["prompts"]
    prompts = AcceptedPrompts(TASKS, anything=True)
    seen = 0
    for case in cases:
        text = case.get("text")
        if text is None or text in TASKS:
            continue
        for cut in {0, len(text) // 2, len(text)}:
            if text[:cut] in TASKS:
                continue  # a task has its own rules
            if "raises" in case:
                with pytest.raises(TaskError):
                    prompts.find(text[:cut], text[cut:])
                continue
            task, rest = prompts.find(text[:cut], text[cut:])
            assert (task.prompt, rest, task.token) == (case["prompt"], None, text[:cut])
            seen += 1
    assert seen > 20


def test_v2_returns_the_seed(model: FakeModel) -> None:
    """A v2 answer with sampling has the seed as a parameter, one for all rows; other answers have no
    parameters."""
    app = v2_app(model)
    reply = infer(app, "<CAPTION>", do_sample=True)
    seed = reply.json()["parameters"]["seed"]
    assert model.calls[0].options["seed"] == seed
    assert "parameters" not in infer(app, "<CAPTION>").json()
    assert infer(app, "<CAPTION>", do_sample=True, seed=5).json()["parameters"] == {"seed": 5}
    assert infer(app, "<CAPTION>", do_sample=True, num_beams=2).status_code == 400
    body = {"INPUT_IMAGE": BASE64, "TASK_PROMPT": "<CAPTION>", "do_sample": True, "seed": 6}
    streamed = send(app, "POST", "/v2/models/florence2/generate_stream", json=body).text
    assert "text_output" in streamed  # a request that samples has one beam
    last = json.loads(streamed.removesuffix("\n\n").rsplit("data: ")[-1])
    assert last["parameters"] == {"seed": 6}

    async def over_grpc() -> int:
        async with listening(model) as (channel, _):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            asked = caption()
            asked.parameters["do_sample"].bool_param = True
            asked.parameters["temperature"].double_param = 0.5
            answer = await stub.ModelInfer(asked)
            return int(answer.parameters["seed"].int64_param)

    assert asyncio.run(over_grpc()) == model.calls[-1].options["seed"]
    assert model.calls[-1].options["temperature"] == 0.5
