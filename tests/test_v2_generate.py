"""The generate extension: one key for each input, parameters beside them, one event for a stream."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from v2 import PICTURE, SERVED, picture, send
from waiting import PATIENCE_S

from florence.errors import FlorenceError
from florence.server.events import build_event
from florence.server.replies import json_bytes
from florence.server.v2.infer_body import build_generate_answer, parse_generate_request
from florence.server.v2.tensors import InferAnswer, read_rows

GENERATE = "/v2/models/florence2/generate"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def caption(**members: Any) -> dict[str, Any]:
    """A caption request with these other members."""
    return {"INPUT_IMAGE": PICTURE, "TASK_PROMPT": "<CAPTION>", **members}


def test_texts_go_in_and_a_text_comes_out(app: Starlette, model: FakeModel) -> None:
    """One row's answer is a text, other keys are parameters, and the id is returned."""
    reply = send(app, "POST", GENERATE, json=caption(id="g1", num_beams=1, temperature=0.5, stream=False))
    assert (reply.status_code, reply.headers["florence-checkpoint"]) == (200, "fake")
    assert reply.json() == {
        "id": "g1",
        "model_name": "florence2",
        "model_version": "1",
        "PARSED_JSON": '{"<CAPTION>": "a fake"}',
    }
    (call,) = model.calls
    assert (call.image, call.options) == (
        picture(),
        {"num_beams": 1, "pictures": "original", "timeout_s": PATIENCE_S},
    )


def test_lists_make_rows(app: Starlette) -> None:
    """A list of one gives a text, of two a list."""
    body = caption(INPUT_IMAGE=[PICTURE], TASK_PROMPT=[["<OD>"]])
    assert next(iter(json.loads(send(app, "POST", GENERATE, json=body).json()["PARSED_JSON"]))) == "<OD>"
    body = caption(INPUT_IMAGE=[PICTURE] * 2, TASK_PROMPT=["<OD>", "<OCR>"])
    rows = send(app, "POST", GENERATE, json=body).json()["PARSED_JSON"]
    assert [next(iter(json.loads(row))) for row in rows] == ["<OD>", "<OCR>"]


@pytest.mark.parametrize("path", [GENERATE, "/v2/models/florence2/versions/1/generate"])
def test_a_stream_is_one_event(app: Starlette, path: str) -> None:
    """A stream is one event, as in Triton for a model that answers once."""
    reply = send(app, "POST", path + "_stream", json=caption(id="s1"))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    event, end = reply.text.split("\n\n")
    assert end == ""
    assert json.loads(event.removeprefix("data: "))["id"] == "s1"


@pytest.mark.parametrize("path", [GENERATE, GENERATE + "_stream"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "failed to parse the request JSON buffer"),
        (b"{", "failed to parse the request JSON buffer"),
        (b"[]", "the document is not an object"),
        ({"INPUT_IMAGE": PICTURE}, "but missing required input(s) ['TASK_PROMPT']"),
        (caption(INPUT_IMAGE=5), "Unable to parse JSON bytes array"),
        (caption(INPUT_IMAGE="%%%"), "not valid base64"),
        (caption(INPUT_IMAGE=base64.b64encode(b"no").decode()), "not a picture"),
        (caption(INPUT_IMAGE=[]), "unexpected shape for input 'INPUT_IMAGE'"),
        (caption(id=1), "Unable to parse 'id'"),
        (caption(num_beams=9), "num_beams must be an integer from 1 to 8"),
        (caption(parameters={"num_beams": 0}), "num_beams must be an integer from 1 to 8"),
        (caption(parameters=[]), "Unable to parse 'parameters'"),
        (caption(other={}), "parameter 'other' has invalid type"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(app: Starlette, path: str, body: Any, message: str) -> None:
    """A mistake is a 400 in JSON, with and without streaming."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = send(app, "POST", path, content=content)
    assert reply.status_code == 400
    assert message in reply.json()["error"]


def test_compressed_bodies_are_refused_in_tritons_words(app: Starlette) -> None:
    """generate refuses compressed bodies in Triton's words; infer accepts them."""
    body = gzip.compress(json.dumps(caption()).encode())
    reply = send(app, "POST", GENERATE, content=body, headers={"content-encoding": "gzip"})
    assert reply.status_code == 400
    assert reply.json() == {"error": "Unsupported content-encoding, only 'identity' is supported."}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", GENERATE, 405),
        ("POST", "/v2/models/nope/generate", 404),
        ("POST", "/v2/models/florence2/versions/97/generate_stream", 404),
    ],
)
def test_paths_are_exact(app: Starlette, method: str, path: str, status: int) -> None:
    """Method, model and version are checked before the body."""
    assert send(app, method, path).status_code == status


@given(
    st.dictionaries(st.sampled_from(["INPUT_IMAGE", "TASK_PROMPT", "TEXT_PROMPT", "id", "x"]), JSON_VALUES)
)
def test_any_members_are_a_request_or_an_error_of_ours(members: dict[str, Any]) -> None:
    """Any value for any key gives a request or a 4xx."""
    try:
        assert read_rows(parse_generate_request(SERVED, json.dumps(caption(**members)).encode()).columns)
    except FlorenceError as error:
        assert 400 <= error.status < 500  # noqa: PT017  (either outcome is right)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_of_ours(body: bytes) -> None:
    """Random bytes are a FlorenceError."""
    with pytest.raises(FlorenceError):
        parse_generate_request(SERVED, body)


@given(st.text())
def test_an_event_holds_any_text_in_one_line(text: str) -> None:
    """An event has any text on one line, so line breaks don't end it."""
    event = build_event(
        json_bytes(build_generate_answer(InferAnswer(SERVED, "", [json.dumps({"<OCR>": text})])))
    )
    assert event.count(b"\n") == 2
    assert json.loads(json.loads(event[6:])["PARSED_JSON"]) == {"<OCR>": text}
