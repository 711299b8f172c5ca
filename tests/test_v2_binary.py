"""Bodies with packed tensors after their JSON: requests and answers, mixed with JSON, and cut at every
position."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from v2 import INFER, SERVED, parse_infer_request, picture, request, send
from waiting import PATIENCE_S

from florence.errors import FlorenceError, ProtocolError
from florence.server.v2.http_app import V2App
from florence.server.v2.infer_body import build_binary_answer
from florence.server.v2.inference import Inference, ModelRepository
from florence.server.v2.tensors import InferAnswer, pack, read_rows, unpack

JPEG = b"\xff\xd8\xff\xe0 picture"


def packed_request(columns: dict[str, list[bytes]], **members: Any) -> tuple[bytes, int]:
    """A request with all tensors packed, and the length of its JSON."""
    tails = {name: pack(elements) for name, elements in columns.items()}
    inputs = [
        {
            "name": name,
            "shape": [len(columns[name]), 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(tail)},
        }
        for name, tail in tails.items()
    ]
    head = json.dumps({"inputs": inputs, **members}).encode()
    return head + b"".join(tails.values()), len(head)


BODY, HEADER = packed_request({"INPUT_IMAGE": [JPEG], "TASK_PROMPT": [b"<CAPTION>"]})


@given(st.permutations(["INPUT_IMAGE", "TASK_PROMPT", "TEXT_PROMPT"]), st.integers(1, 36), st.data())
def test_packed_rows_come_back_in_order(names: list[str], count: int, data: Any) -> None:
    """Packed rows are read in order for any order of the inputs; the bytes follow the JSON in the order of
    its inputs."""
    images = [JPEG + bytes([index]) for index in range(count)]
    tasks = [f"<T{index}>".encode() for index in range(count)]
    texts = data.draw(st.lists(st.text(max_size=6), min_size=count, max_size=count))
    columns = {"INPUT_IMAGE": images, "TASK_PROMPT": tasks, "TEXT_PROMPT": [text.encode() for text in texts]}
    body, header = packed_request({name: columns[name] for name in names})
    rows = read_rows(parse_infer_request(body, str(header)).columns)
    assert [row.image() for row in rows] == images
    assert [row.task.encode() for row in rows] == tasks
    assert [row.text for row in rows] == [text if text.strip() else None for text in texts]


def test_packed_and_json_tensors_mix() -> None:
    """A request may mix packed and JSON tensors."""
    packed = pack([JPEG])
    inputs = [
        {"name": "TASK_PROMPT", "shape": [1, 1], "datatype": "BYTES", "data": ["<OD>"]},
        {
            "name": "INPUT_IMAGE",
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(packed)},
        },
    ]
    head = json.dumps({"inputs": inputs}).encode()
    (row,) = read_rows(parse_infer_request(head + packed, str(len(head))).columns)
    assert (row.image(), row.task) == (JPEG, "<OD>")


@given(st.integers(0, len(BODY)))
def test_a_body_cut_anywhere_is_refused(length: int) -> None:
    """Only the whole body is a request; a shorter one is refused."""
    if length == len(BODY):
        assert read_rows(parse_infer_request(BODY, str(HEADER)).columns)
        return
    with pytest.raises(ProtocolError):
        parse_infer_request(BODY[:length], str(HEADER))


@given(st.binary(max_size=300), st.integers(-5, 400).map(str) | st.text(max_size=12))
def test_any_bytes_and_header_are_a_request_or_an_error_of_ours(body: bytes, header: str) -> None:
    """Any header length and bytes give a request or a FlorenceError that becomes a 4xx."""
    for content in (body, BODY[:HEADER] + body):
        try:
            assert parse_infer_request(content, header).row_count == 1
        except FlorenceError as error:
            assert 400 <= error.status < 500  # noqa: PT017  (either outcome is right)


@pytest.mark.parametrize(
    ("body", "header", "message"),
    [
        (BODY, "0", "^.request id: <id_unknown>. Raw request must only have 1 input"),
        (BODY, "x", "Raw request must only have 1 input"),
        (BODY, "²", "Raw request must only have 1 input"),
        (BODY, "9" * 5000, "Raw request must only have 1 input"),
        (BODY, "-3", rf"^inference header size should be in range \(0, {len(BODY)}\), got: -3$"),
        (BODY, "10000000", r"^inference header size should be in range .* got: 10000000$"),
        (BODY, "20", "^failed to parse the request JSON buffer"),
        (BODY, None, "^failed to parse the request JSON buffer"),
        (
            BODY[:-3],
            str(HEADER),
            "^unexpected size for input 'TASK_PROMPT', expecting 3 additional bytes for model 'florence2'$",
        ),
        (BODY + b"zzz", str(HEADER), "^unexpected additional input data for model 'florence2'$"),
        (BODY.replace(b'_size": 13', b'_size":"x"'), str(HEADER), "^Unable to parse 'binary_data_size'"),
        (BODY.replace(b'_size": 13', b'_size": -1'), str(HEADER), "^Unable to parse 'binary_data_size'"),
        (BODY.replace(b'_size": 13', b'_soze": 13'), str(HEADER), "But no field is set$"),
    ],
)
def test_what_does_not_fit_is_refused_in_tritons_words(body: bytes, header: str | None, message: str) -> None:
    """Contradictory header lengths, sizes and tails are refused in Triton's words."""
    with pytest.raises(ProtocolError, match=message):
        parse_infer_request(body, header)


@pytest.mark.parametrize(
    ("members", "binary"),
    [
        ({}, False),
        ({"outputs": [{"name": "PARSED_JSON", "parameters": {"binary_data": True}}]}, True),
        ({"outputs": [{"name": "PARSED_JSON", "parameters": {"binary_data": False}}]}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"parameters": {"binary_data_output": True}, "outputs": []}, True),
        ({"parameters": {"binary_data_output": True}, "outputs": [{"name": "PARSED_JSON"}]}, False),
        ({"parameters": {"binary_data_output": False}}, False),
    ],
)
def test_the_output_is_packed_when_asked(members: dict[str, Any], binary: bool) -> None:
    """A named output decides whether it is packed, else the request does, as in Triton."""
    body, header = packed_request({"INPUT_IMAGE": [JPEG], "TASK_PROMPT": [b"<OD>"]}, **members)
    assert parse_infer_request(body, str(header)).binary_output is binary


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2), max_size=4))
def test_packed_answers_come_back(answers: list[dict[str, str]]) -> None:
    """The JSON gives the number of bytes after it, which are the rows."""
    body, header = build_binary_answer(InferAnswer(SERVED, "7", [json.dumps(row) for row in answers]))
    head = json.loads(body[:header])
    (output,) = head["outputs"]
    assert (head["id"], output["shape"]) == ("7", [len(answers), 1])
    assert "data" not in output
    assert output["parameters"]["binary_data_size"] == len(body) - header
    packed = unpack(memoryview(body)[header:], "PARSED_JSON", len(answers))
    assert [json.loads(bytes(row)) for row in packed] == answers


def test_raw_bytes_go_in_and_packed_answers_come_out() -> None:
    """Over HTTP a packed request, with its header in any letter case, gets a packed answer with header and
    type."""
    model, app = FakeModel(), V2App(ModelRepository([Inference(PATIENCE_S)]), 10_000_000)
    app.state.repository.find("florence2").model = model
    outputs = [{"name": "PARSED_JSON", "parameters": {"binary_data": True}}]
    columns = {"INPUT_IMAGE": [picture()], "TASK_PROMPT": [b"<CAPTION>"]}
    body, header = packed_request(columns, id="b-7", outputs=outputs)
    reply = send(app, "POST", INFER, content=body, headers={"inference-header-content-length": str(header)})
    assert reply.status_code == 200
    assert model.calls[0].image == picture()
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.content[:length])["id"] == "b-7"
    assert json.loads(reply.content[length + 4 :]) == {"<CAPTION>": "a fake"}
    plain = send(app, "POST", INFER, json=request())
    assert "inference-header-content-length" not in plain.headers
    model.close()
