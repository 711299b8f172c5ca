"""`image_url` at the endpoints: the same answers as for the picture itself, and clear refusals."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from fake_model import FakeModel
from fake_web import HOST, PICTURE, FakeWeb, answer
from starlette.applications import Starlette
from starlette.testclient import TestClient
from waiting import PATIENCE_S

from florence.client import Client, ImageError, ImageUrl
from florence.images.limits import DEFAULT_LIMITS
from florence.server.fetching.fetcher import fetcher_of
from florence.server.typed.task_paths import task_route
from florence.server.v2.inference import Inference
from florence.settings import Settings

URL = f"https://{HOST}/street.png"
BASE64 = base64.b64encode(PICTURE).decode()
WAYS = [
    ("/caption", {}),
    ("/region_to_ocr", {"region": [1, 2, 30, 40]}),
    ("/open_vocabulary_detection", {"text": "a car"}),
    ("/tasks/object_detection", {"num_beams": 2}),
    ("/prompt", {"prompt": "What is it?"}),
    ("/analyze", {"tasks": ["caption", "<OD>"]}),
]


@pytest.fixture
def there(web: FakeWeb) -> FakeWeb:
    """A web with the picture at `URL` and no connection yet."""
    web.pages = {URL: [answer()]}
    web.connections.clear()
    return web


def timeless(body: dict[str, Any]) -> str:
    """The answer as JSON without its times."""
    for each in body.get("answers", [body]):
        each.pop("timings")
    return json.dumps(body)


@pytest.mark.parametrize(("path", "fields"), WAYS)
def test_a_url_is_answered_as_the_picture_itself(
    client: TestClient, served: FakeModel, there: FakeWeb, path: str, fields: dict[str, Any]
) -> None:
    """A URL in JSON, also beside a null image, and in a form gets the picture's answer."""
    sent = timeless(client.post(path, json={"image": BASE64, **fields}).json())
    form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    parts = {name: (None, value) for name, value in {**form, "image_url": URL}.items()}
    replies = [
        client.post(path, json={"image_url": URL, **fields}),
        client.post(path, json={"image_url": URL, "image": None, **fields}),
        client.post(path, files=parts),
    ]
    for reply in replies:
        assert reply.status_code == 200, reply.text
        assert timeless(reply.json()) == sent
    assert {bytes(call.image) for call in served.calls} == {PICTURE}
    assert len(there.connections) == len(replies)


def test_a_drawn_answer_is_drawn_on_the_fetched_picture(client: TestClient, there: FakeWeb) -> None:
    """The drawing is made on the fetched picture."""
    png = {"accept": "image/png"}
    one = client.post("/object_detection", json={"image_url": URL}, headers=png)
    other = client.post("/object_detection", json={"image": BASE64}, headers=png)
    assert (one.status_code, one.headers["content-type"]) == (200, "image/png")
    assert one.content == other.content


@pytest.mark.parametrize(("path", "fields"), WAYS)
@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"image_url": "https://evil.test/a.png"}, 400, "FLORENCE_IMAGE_HOSTS"),
        ({"image_url": "file:///etc/passwd"}, 400, "http or https"),
        ({"image_url": URL, "image": BASE64}, 400, "send one of them"),
        ({"image_url": 5}, 400, "image_url"),
        ({"image_url": "x" * 10_000}, 400, "image_url"),
        ({"image_url": None}, 400, "image is missing"),
        ({"image_url": f"https://{HOST}/none.png"}, 422, "no picture"),
        ({"image": URL}, 400, "as image_url"),
    ],
)
def test_what_can_not_be_fetched_is_refused(
    client: TestClient,
    there: FakeWeb,
    path: str,
    fields: dict[str, Any],
    sent: dict[str, Any],
    status: int,
    said: str,
) -> None:
    """A URL that can't be fetched is refused with its cause's status and what to change."""
    reply = client.post(path, json={**sent, **fields})
    assert reply.status_code == status, reply.text
    assert said in reply.json()["error"]


@pytest.mark.parametrize("page", [answer()[:80], answer(b"", 500)])
def test_a_host_that_fails_is_a_bad_gateway(client: TestClient, there: FakeWeb, page: bytes) -> None:
    """A failing host is a 502: the same request may succeed later."""
    there.pages[URL] = [page]
    reply = client.post("/caption", json={"image_url": URL})
    assert reply.status_code == 502
    assert "image_url" in reply.json()["error"]


def test_it_is_off_unless_hosts_are_named(model: FakeModel) -> None:
    """Without named hosts a URL is refused, the setting is named, and the model is not asked."""
    inference = Inference(PATIENCE_S)
    inference.model = model
    off = TestClient(Starlette(routes=[task_route(inference, fetcher_of(Settings()), DEFAULT_LIMITS)]))
    reply = off.post("/tasks/caption", json={"image_url": URL})
    assert reply.status_code == 400
    assert "FLORENCE_IMAGE_HOSTS" in reply.json()["error"]
    assert model.calls == []


def test_a_raw_picture_and_a_url_in_the_query_are_two(client: TestClient, there: FakeWeb) -> None:
    """A picture as the body and a URL in the query are refused together."""
    head = {"content-type": "image/png"}
    reply = client.post("/caption", params={"image_url": URL}, content=PICTURE, headers=head)
    assert reply.status_code == 400
    assert "send one of them" in reply.json()["error"]
    assert there.connections == []


@pytest.mark.parametrize("name", ["image_url", "INPUT_IMAGE"])
def test_v2_fetches_nothing(client: TestClient, there: FakeWeb, name: str) -> None:
    """v2 fetches no URL: as in Triton, it takes bytes."""
    values = {"INPUT_IMAGE": BASE64, "TASK_PROMPT": "<CAPTION>", name: URL}
    client.post("/v2/models/florence2/generate", json=values)
    assert there.connections == []


def test_the_document_has_one_of_both(client: TestClient) -> None:
    """The document requires either the picture or the URL, in JSON and forms, and lists a fetch's
    statuses."""
    document = client.get("/docs.json").json()
    for path, fields in WAYS:
        if path.startswith("/tasks"):
            continue
        operation = document["paths"][path]["post"]
        content = operation["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for schema in (document["components"]["schemas"][name], content["multipart/form-data"]["schema"]):
            assert [each["required"] for each in schema["oneOf"]] == [["image"], ["image_url"]]
            assert set(schema.get("required", [])) == set(fields)
            assert "default" not in schema["properties"]["image"]
        assert {"422", "502"} <= operation["responses"].keys()


def test_the_client_sends_a_url_only_as_image_url(client: TestClient, there: FakeWeb) -> None:
    """`ImageUrl` works with any method of the client; a plain text is a path, and the error for one like a
    URL names `ImageUrl`."""

    def forwarded(request: httpx.Request) -> httpx.Response:
        head = {"content-type": request.headers["content-type"]}
        reply = client.post(request.url.path, content=request.read(), headers=head)
        return httpx.Response(reply.status_code, content=reply.content)

    with Client("http://testserver", transport=httpx.MockTransport(forwarded)) as asking:
        by_url = asking.caption(ImageUrl(URL))
        assert by_url.result == asking.caption(PICTURE).result
        assert len(asking.analyze(ImageUrl(URL), ["ocr", "caption"])) == 2
        assert asking.run(ImageUrl(URL), "object_detection").task == "<OD>"
        assert [picture for picture, _ in asking.map([ImageUrl(URL)], "ocr")] == [ImageUrl(URL)]
        assert len(there.connections) == 4
        with pytest.raises(ImageError, match="ImageUrl"):
            asking.caption(URL)
    assert len(there.connections) == 4


def test_a_chat_takes_a_url_too(client: TestClient, served: FakeModel, there: FakeWeb) -> None:
    """A chat takes a URL by the same rules."""

    def asked(url: str) -> httpx.Response:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "<CAPTION>"}]
        body = {"model": "florence2", "messages": [{"role": "user", "content": content}]}
        reply = client.post("/v1/chat/completions", json=body)
        return httpx.Response(reply.status_code, content=reply.content)

    assert asked(URL).status_code == 200
    assert [bytes(call.image) for call in served.calls] == [PICTURE]
    refused = asked("https://evil.test/a.png")
    assert refused.status_code == 400
    assert "FLORENCE_IMAGE_HOSTS" in refused.json()["error"]["message"]
    assert len(there.connections) == 1
