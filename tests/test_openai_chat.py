"""OpenAI's chat completions with a fake model, called by the `openai` client and by plain HTTP."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from chats import DATA_URI, KEY, MAX_BYTES, ask, chat_client, client_of, messages, refusal
from fake_model import PIECES, RESULT, FakeModel
from openai.types.chat import completion_create_params
from starlette.testclient import TestClient
from v2 import picture
from waiting import PATIENCE_S

from florence.answers.description import describe
from florence.errors import EngineError, Overloaded
from florence.server.openai import fields
from florence.types.options import RequestParameters
from florence.types.tasks import TASKS, Input, Kind, Task

OWN = {"token": "<DocVQA>", "name": "doc_vqa", "input": "text"}


@pytest.fixture
def http(model: FakeModel) -> Iterator[TestClient]:
    """An HTTP client with an API key, for a fake model with its own task."""
    model.own = [OWN]
    with chat_client(model) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture
def client(http: TestClient) -> openai.OpenAI:
    """An `openai` client with that connection."""
    return client_of(http)


def given(task: Task) -> str:
    """The text that a task needs after its token."""
    if task.input is Input.NONE:
        return ""
    return "1, 1, 5, 5" if task.input is Input.REGION else "a green: car"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_each_task_is_asked_by_token_and_by_name(client: openai.OpenAI, model: FakeModel, task: Task) -> None:
    """Token and name, in other letter case and with spaces too, ask the same task; its input follows. The
    answer is the command line's text, and the typed result."""
    behind = given(task)
    words = task.name.replace("_", " ").capitalize()
    ways = [f"{task.token}{behind}", f"{task.token} {behind} "]
    ways += [f"{name}: {behind}" if behind else name for name in (task.name, words)]
    ways += [f"{task.name}\n{behind}"]
    for text in ways:
        reply = ask(client, text)
        message = reply.choices[0].message
        result = RESULT[task.kind]
        assert message.content == "\n".join(describe(result))
        assert message.florence2_result == result.model_dump(mode="json")
        assert (reply.choices[0].finish_reason, reply.model) == ("stop", "florence2")
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 3)
        assert reply.florence2["task"] == task.token
        call = model.calls[-1]
        assert (call.task, call.image) == (task.token, picture())
        assert (call.options.get("region") or call.text or "") == behind


def test_the_text_may_stand_in_parts_and_declared_tasks_are_tasks(
    client: openai.OpenAI, model: FakeModel
) -> None:
    """Text parts are lines, the picture may come first, and a declared task is asked like any other."""
    (message,) = messages("<DocVQA>")
    message["content"] = [*message["content"][::-1], {"type": "text", "text": "What is the total?"}]
    client.chat.completions.create(model="florence2", messages=[message])
    ask(client, "doc vqa: What is the total?")
    assert {(call.task, call.text) for call in model.calls} == {("<DocVQA>", "What is the total?")}


def test_a_prompt_of_ones_own_needs_answer_as_or_the_setting(model: FakeModel) -> None:
    """`answer_as` makes any text a prompt, even a task's name; FLORENCE_PROMPTS=any does so for a text
    that is no task."""
    with chat_client(model) as http:
        client = client_of(http)
        refused = refusal(client, "What is odd?")
        assert refused.status_code == 400
        assert "answer_as" in refused.message
        assert "FLORENCE_PROMPTS=any" in refused.message
        ask(client, "What is odd?", extra_body={"answer_as": "boxes"})
        ask(client, "caption", extra_body={"answer_as": "text"})
        assert "answer_as must be" in refusal(client, extra_body={"answer_as": "poem"}).message
    prompts = [call.asked for call in model.calls]
    assert [(each.prompt, each.kind) for each in prompts if each] == [
        ("What is odd?", Kind.BOXES),
        ("caption", Kind.TEXT),
    ]
    with chat_client(model, any_prompt=True) as http:
        client = client_of(http)
        ask(client, "What is odd?")
        ask(client, "caption")
    assert [call.task for call in model.calls[2:]] == ["What is odd?", "<CAPTION>"]


def test_options_go_under_openais_names_and_our_own(client: openai.OpenAI, model: FakeModel) -> None:
    """OpenAI's options and our own are read; a temperature of 0 turns sampling off, and options without
    effect are left out."""
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_completion_tokens": 7}, {"max_new_tokens": 7}),
        ({"temperature": 0, "top_p": 0.5, "seed": 3}, {"do_sample": False}),
        ({"temperature": 0.5, "seed": 3}, {"do_sample": True, "temperature": 0.5, "seed": 3}),
        ({"top_p": 0.5}, {"do_sample": True, "top_p": 0.5}),
        ({"top_p": 1}, {"do_sample": False}),
        ({"seed": 3}, {}),
        ({"extra_body": {"num_beams": 2, "min_score": 0.5}}, {"num_beams": 2, "min_score": 0.5}),
        ({"n": 1, "tools": [], "user": "alice", "stop": None, "logprobs": False}, {}),
        ({"response_format": {"type": "text"}, "frequency_penalty": 0.0, "store": False}, {}),
    ]
    for sent, read in cases:
        ask(client, "<CAPTION>", **sent)
        options = {name: value for name, value in model.calls[-1].options.items() if value is not None}
        assert {name: options[name] for name in options.keys() & RequestParameters.model_fields} == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("stop", ["."]),
        ("logit_bias", {"5": 1}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "low"),
        ("service_tier", "flex"),
        ("store", True),
        ("web_search_options", {}),
        ("stream_options", {"include_usage": True}),
        ("temperature", 200),
        ("temperature", False),
        ("max_tokens", 0),
        ("max_completion_tokens", 5000),
        ("num_beams", 99),
        ("stream", "yes"),
        ("colour", "red"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI, name: str, value: Any) -> None:
    """An unsupported option or value is a 400 that names the option."""
    refused = refusal(client, extra_body={name: value})
    assert isinstance(refused, openai.BadRequestError)
    assert (refused.param, refused.type) == (name, "invalid_request_error")
    assert name in refused.message


def test_each_field_of_the_client_is_read_or_refused() -> None:
    """Each field of OpenAI's API is known, since an unknown one would be called unknown, not unsupported."""
    known = {*fields.READ, *fields.IGNORED, *fields.LENGTHS, *fields.WITHOUT_EFFECT}
    params = completion_create_params
    sent = {*params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert sent <= known | set(RequestParameters.model_fields)


IMAGE = {"type": "image_url", "image_url": {"url": DATA_URI}}
SMALL = {"type": "image_url", "image_url": {"url": DATA_URI, "detail": "low"}}
WORD = {"type": "text", "text": "<OD>"}


def user(*parts: Any) -> list[Any]:
    """One message of the user with these parts."""
    return [{"role": "user", "content": list(parts)}]


PLACE = "messages[0].content"


@pytest.mark.parametrize(
    ("sent", "param", "said"),
    [
        (None, "messages", "must be a list"),
        ([], "messages", "must be a list"),
        ([{"role": "system", "content": "Be brief."}, *user(WORD)], "messages[0].role", "no conversation"),
        ([3], "messages[0].role", "None"),
        (messages("<OD>") * 2, "messages", "2 messages are not supported"),
        ([{"role": "user", "content": 3}], PLACE, "list of parts"),
        ([{"role": "user", "content": "<OD>"}], "messages", "got 0"),
        (user(IMAGE), "messages", "text is missing"),
        (user(IMAGE, IMAGE, WORD), "messages", "got 2"),
        (user(3), f"{PLACE}[0]", "object"),
        (user(WORD, {"type": "input_audio"}), f"{PLACE}[1]", "'input_audio' is not supported"),
        (user(WORD, {"type": "image_url"}), f"{PLACE}[1].image_url", "url"),
        (user(SMALL), f"{PLACE}[0].image_url.detail", "not supported"),
        (messages("<OD>", "data:image/png;base64,AAA"), f"{PLACE}[1].image_url", "multiple of 4"),
        (user({"type": "text", "text": {}}), f"{PLACE}[0]", "text"),
        ([{**user(WORD, IMAGE)[0], "tool": 1}], "messages[0].tool", "leave it out"),
        (messages("x" * 70_000), "messages", "65536"),
    ],
)
def test_messages_are_checked_part_by_part(http: TestClient, sent: Any, param: str, said: str) -> None:
    """A wrong message is a 400 that names its part, and is short."""
    reply = http.post("/v1/chat/completions", json={"model": "florence2", "messages": sent})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, None)
    assert said in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff\xfe", b'{"model": NaN}'])
def test_a_body_that_is_no_request_is_a_400(http: TestClient, body: bytes) -> None:
    """A body that is not a JSON object is a 400 in OpenAI's format."""
    reply = http.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_the_tasks_own_rules_are_the_models(client: openai.OpenAI) -> None:
    """An extra text, a missing text, a wrong region and a broken picture are refused as at other
    endpoints."""
    assert "takes no text" in refusal(client, "<OD>a green car").message
    assert "needs a text" in refusal(client, "<DocVQA>").message
    assert "inside the picture" in refusal(client, "region_to_ocr: 0, 0, 900, 900").message
    with pytest.raises(openai.BadRequestError, match="PNG"):
        client.chat.completions.create(
            model="florence2", messages=messages("<OD>", "data:image/png;base64,AAAA")
        )


class FakeFetcher:
    """A fetcher that gives a picture for any URL and records the calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    async def fetch(self, url: str, *, timeout_s: float, body: Any = None) -> bytes:
        """Record the call and return the picture."""
        self.asked.append((url, timeout_s))
        return picture()


def test_a_picture_at_a_url_is_fetched_where_the_settings_allow_it(
    client: openai.OpenAI, model: FakeModel
) -> None:
    """A URL is fetched within the request's time where the settings allow it; by default it is refused,
    and the setting named."""
    url = "https://pictures.example/a.png"
    asked: Any = {"model": "florence2", "messages": messages("<OD>", url)}
    with pytest.raises(openai.BadRequestError, match="FLORENCE_IMAGE_HOSTS"):
        client.chat.completions.create(**asked)
    fetcher: Any = FakeFetcher()
    with chat_client(model, fetcher=fetcher) as http:
        client_of(http).chat.completions.create(**asked)
    assert fetcher.asked == [(url, PATIENCE_S)]
    (call,) = model.calls
    assert call.image == picture()
    assert 0 < call.options["timeout_s"] <= PATIENCE_S


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, model: FakeModel) -> None:
    """A stream has the pieces in order, the typed result, and the usage if asked for; it has one beam."""
    chunks = list(ask(client, "caption", stream=True, stream_options={"include_usage": True}))
    text = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in text) == "".join(PIECES)
    assert text[: len(PIECES)] == list(PIECES)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [*[None] * len(PIECES), "stop"]
    last = chunks[-2].choices[0].delta
    assert last.florence2_result == RESULT[Kind.TEXT].model_dump(mode="json")
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 6)
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert model.calls[-1].options["num_beams"] == 1
    plain = list(ask(client, "caption", stream=True, temperature=0.5))
    assert all(chunk.usage is None for chunk in plain)
    assert "num_beams" not in model.calls[-1].options


def test_a_stream_of_what_is_no_text_is_refused(client: openai.OpenAI, model: FakeModel) -> None:
    """A stream of boxes, of several beams or of tiles is refused before the model is asked."""
    for text, options in (("<OD>", {}), ("<OCR>", {"num_beams": 3}), ("<OCR>", {"tiles": "auto"})):
        refused = refusal(client, text, stream=True, extra_body=options)
        assert (refused.status_code, refused.param) == (400, "stream")
    assert model.calls == []


def test_errors_of_the_model_have_openais_shape(client: openai.OpenAI, model: FakeModel) -> None:
    """An error before the text has a status and a Retry-After; one after it is an event, which the client
    raises."""
    model.error = Overloaded("the queue is full", retry_after_s=3)
    refused = refusal(client)
    assert isinstance(refused, openai.InternalServerError)
    assert (refused.status_code, refused.type) == (503, "server_error")
    assert refused.response.headers["Retry-After"] == "3"
    assert refusal(client, stream=True).status_code == 503
    model.error, model.fails_late = EngineError("the device is gone"), True
    with pytest.raises(openai.APIError, match="the device is gone"):
        list(ask(client, "<CAPTION>", stream=True))
    model.error = ValueError("a secret of the program")
    assert "secret" not in refusal(client).message


def test_models_are_listed(client: openai.OpenAI) -> None:
    """The served model is listed; another name is a 404 that gives the right one."""
    (listed,) = client.models.list()
    assert (listed.id, listed.object, listed.owned_by) == ("florence2", "model", "florence")
    assert client.models.retrieve("florence2") == listed
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not served; the model is 'florence2'"):
        client.chat.completions.create(model="gpt-4o", messages=messages("<OD>"))


def test_keys_limits_and_other_paths_answer_in_openais_shape(http: TestClient, model: FakeModel) -> None:
    """Errors of middleware have OpenAI's format on these paths; other paths keep theirs."""
    with pytest.raises(openai.AuthenticationError, match="API key is not known") as caught:
        ask(client_of(http, "wrong"), "<CAPTION>")
    assert caught.value.code == "invalid_api_key"
    large = refusal(client_of(http), "<CAPTION>" + "x" * MAX_BYTES)
    assert (large.status_code, large.type) == (413, "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings is not supported"):
        client_of(http).embeddings.create(model="florence2", input="x")
    assert http.get("/v1/chat/completions").json()["error"]["message"].startswith("GET /v1/chat")
    assert http.post("/elsewhere").json() == {"error": "not of this API"}
    with chat_client(model, loaded=False) as loading:
        waiting = refusal(client_of(loading))
        assert (waiting.status_code, waiting.message.count("not ready")) == (503, 1)


def test_gzip_is_undone(http: TestClient, model: FakeModel) -> None:
    """A gzip body is decompressed; another encoding is an error in OpenAI's format."""
    body = json.dumps({"model": "florence2", "messages": messages("<OD>")}).encode()
    sent = {"content": gzip.compress(body), "headers": {"Content-Encoding": "gzip"}}
    assert http.post("/v1/chat/completions", **sent).status_code == 200  # type: ignore[arg-type]
    reply = http.post("/v1/chat/completions", content=body, headers={"Content-Encoding": "br"})
    assert reply.status_code == 501
    assert reply.json()["error"]["type"] == "server_error"
