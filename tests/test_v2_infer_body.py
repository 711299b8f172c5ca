"""The v2 JSON bodies: valid requests are read, all others are refused in Triton's words, and none causes
another exception."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from v2 import SERVED, parse_infer_request

from florence.errors import FlorenceError, ProtocolError
from florence.server.v2.infer_body import build_infer_answer
from florence.server.v2.tensors import InferAnswer, Row, read_rows
from florence.types.options import MAX_TEXT_CHARS

PICTURE = base64.b64encode(b"picture").decode()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def tensor(name: str, data: Any, shape: list[Any] | None = None, **members: Any) -> dict[str, Any]:
    """One input tensor; its shape is [rows, 1] by default."""
    return {"name": name, "shape": shape or [len(data), 1], "datatype": "BYTES", "data": data, **members}


def request(**members: Any) -> dict[str, Any]:
    """A caption request with these members in place of its own."""
    return {"inputs": [tensor("INPUT_IMAGE", [PICTURE]), tensor("TASK_PROMPT", ["<CAPTION>"])], **members}


def body(content: Any) -> bytes:
    """The content as JSON."""
    return json.dumps(content).encode()


def rows_of(content: bytes) -> tuple[Row, ...]:
    """The rows of a request."""
    return read_rows(parse_infer_request(content).columns)


def nested(strings: list[str], draw: Any) -> Any:
    """The strings in some nesting of lists."""
    depth = draw(st.integers(0, 3))
    data: Any = list(strings)
    for _ in range(depth):
        data = [data] if draw(st.booleans()) else [[element] for element in data]
    return data


@given(st.data())
def test_rows_come_back_in_order_from_any_nesting(data: Any) -> None:
    """Row i has the i-th picture, task and text for any nesting of lists, since only strings count."""
    images = data.draw(
        st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=SERVED.max_batch_size)
    )
    texts = data.draw(st.lists(st.text(max_size=10), min_size=len(images), max_size=len(images)))
    encoded = [base64.b64encode(image).decode() for image in images]
    shape = [len(images), 1]
    inputs = [
        tensor("TEXT_PROMPT", nested(texts, data.draw), shape),
        tensor("INPUT_IMAGE", nested(encoded, data.draw), shape),
        tensor("TASK_PROMPT", nested([f"<T{i}>" for i in range(len(images))], data.draw), shape),
    ]
    rows = rows_of(body({"inputs": inputs}))
    assert [row.image() for row in rows] == images
    assert [row.task for row in rows] == [f"<T{i}>" for i in range(len(images))]
    assert [row.text for row in rows] == [text if text.strip() else None for text in texts]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error_of_ours(content: bytes) -> None:
    """Random bytes are a FlorenceError that becomes a 4xx."""
    with pytest.raises(FlorenceError) as caught:
        parse_infer_request(content)
    assert 400 <= caught.value.status < 500


@given(st.dictionaries(st.sampled_from(["id", "inputs", "outputs", "parameters", "x"]), JSON_VALUES))
def test_any_json_members_are_a_request_or_an_error_of_ours(members: dict[str, Any]) -> None:
    """Any value for any member is read, or refused with a 4xx."""
    _parse_or_refuse(body(request(**members)))


@given(
    st.sampled_from([0, 1]),
    st.dictionaries(
        st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), JSON_VALUES, min_size=1
    ),
)
def test_any_tensor_members_are_a_request_or_an_error_of_ours(index: int, members: dict[str, Any]) -> None:
    """Any value for any member of a tensor is read, or refused with a 4xx."""
    content = request()
    content["inputs"][index] |= members
    _parse_or_refuse(body(content))


def _parse_or_refuse(content: bytes) -> None:
    """Check that the request is read, or refused with a 4xx and a message."""
    try:
        assert rows_of(content)
    except FlorenceError as error:
        refusal = error
    else:
        return
    assert 400 <= refusal.status < 500
    assert str(refusal)


@pytest.mark.parametrize(
    "content",
    [
        body(request()),
        b"\xef\xbb\xbf" + body(request()),
        b"\n  " + body(request()) + b"  \n",
        body(request(outputs=[])),
        body(request(outputs=[{"name": "PARSED_JSON"}, {"name": "PARSED_JSON", "parameters": {"foo": 1}}])),
        body(request(outputs=[{"name": "PARSED_JSON", "parameters": {"binary_data": False}}])),
        body(request(parameters={"a": 1, "b": "x", "c": True, "d": 1.5, "timeout": 1, "priority": 5})),
        body(request(parameters={"triton_enable_empty_final_response": True})),
        body(request(model_name="other", foo=[1])),
        body(request(id="")),
        body(request()).replace(b"[1, 1]", b"[1]"),
    ],
)
def test_what_triton_takes_is_taken(content: bytes) -> None:
    """A byte order mark, white space, unknown members and parameters, requested outputs and an empty id
    are accepted, as in Triton."""
    parsed = parse_infer_request(content)
    assert parsed.id == ""
    assert not parsed.binary_output
    assert [(row.image(), row.task, row.text) for row in rows_of(content)] == [
        (b"picture", "<CAPTION>", None)
    ]


def _inputs(*tensors: dict[str, Any]) -> dict[str, Any]:
    """A request with these tensors."""
    return {"inputs": list(tensors)}


IMAGE = tensor("INPUT_IMAGE", [PICTURE])
TASK = tensor("TASK_PROMPT", ["<CAPTION>"])
UNKNOWN_ID = r"^\[request id: <id_unknown>\] "
REFUSED: list[tuple[Any, str]] = [
    (b"", UNKNOWN_ID + "Raw request must only have 1 input"),
    (b"hello", "^failed to parse the request JSON buffer: Expecting value at 0$"),
    (b'{"inputs":[', "^failed to parse the request JSON buffer: "),
    (body(request()) + b"xxx", "^failed to parse the request JSON buffer: Extra data"),
    (b"\xff\xfe\xff", "^failed to parse the request JSON buffer: "),
    (b"[" * 50_000, "nested in more than 64 levels"),
    (b'{"inputs":[], "x": NaN}', "NaN is not JSON"),
    (b'{"x": ' + b"1" * 5000 + b"}", "^failed to parse the request JSON buffer: "),
    ([], "^failed to parse the request JSON buffer: the document is not an object"),
    ({}, "^Unable to parse 'inputs': attempt to access non-existing object member 'inputs'$"),
    ({"inputs": {}}, "^Unable to parse 'inputs': attempt to access JSON non-array as array$"),
    ({"inputs": [1]}, "^Unable to parse 'inputs'"),
    (request(id=42), "^Unable to parse 'id': attempt to access JSON non-string as string$"),
    (request(id="\ud800"), "id is not valid Unicode"),
    (request(outputs="x"), "^Unable to parse 'outputs'"),
    (request(outputs=[{}]), "^Unable to parse 'name'"),
    (request(outputs=[{"name": "NOPE"}]), "^unexpected inference output 'NOPE' for model 'florence2'$"),
    (
        request(outputs=[{"name": "PARSED_JSON", "parameters": {"binary_data": "yes"}}]),
        "^Unable to parse 'binary_data'",
    ),
    (request(parameters={"binary_data_output": 1}), "^Unable to parse 'binary_data_output'"),
    (request(parameters=[1]), "^Unable to parse 'parameters'"),
    (
        request(parameters={"a": {}}),
        r"^parameter 'a' has invalid type\. It should be either 'int', 'bool', or 'string'\.$",
    ),
    (request(parameters={"a": None}), "^parameter 'a' has invalid type"),
    (request(parameters={"triton_foo": 1}), "^parameter keys starting with 'triton_' are reserved"),
    (request(parameters={"timeout": "5"}), "^Unable to parse 'timeout'"),
    (request(parameters={"priority": -1}), "^Unable to parse 'priority'"),
    (_inputs(), r"but got 0 inputs for model 'florence2'\. Got input\(s\) \[\]"),
    (
        _inputs(IMAGE),
        UNKNOWN_ID
        + r"expected number of inputs between 2 and 3 but got 1 inputs for model 'florence2'\. Got "
        r"input\(s\) \['INPUT_IMAGE'\], but missing required input\(s\) \['TASK_PROMPT'\]\. Please provide "
        r"all required input\(s\)\.$",
    ),
    ({"id": "abc", **_inputs(IMAGE)}, r"^\[request id: abc\] expected number of inputs"),
    (
        _inputs(IMAGE, TASK, tensor("NOPE", ["x"])),
        "^unexpected inference input 'NOPE' for model 'florence2'$",
    ),
    (_inputs(IMAGE, IMAGE, TASK), UNKNOWN_ID + "input 'INPUT_IMAGE' already exists in request$"),
    (
        _inputs(IMAGE | {"datatype": "FP32", "data": [1.5]}, TASK),
        UNKNOWN_ID
        + "inference input 'INPUT_IMAGE' data-type is 'FP32', but model 'florence2' expects 'BYTES'$",
    ),
    (_inputs(IMAGE | {"datatype": "bytes"}, TASK), "^invalid datatype for input INPUT_IMAGE$"),
    (
        _inputs({"name": "INPUT_IMAGE", "shape": [1, 1], "data": [PICTURE]}, TASK),
        "^Unable to parse 'datatype'",
    ),
    (
        _inputs({"name": "INPUT_IMAGE", "datatype": "BYTES", "data": [PICTURE]}, TASK),
        "^Unable to parse 'shape'",
    ),
    (_inputs({"shape": [1, 1], "datatype": "BYTES", "data": [PICTURE]}, TASK), "^Unable to parse 'name'"),
    (_inputs(IMAGE | {"shape": "1,1"}, TASK), "^Unable to parse 'shape'"),
    (_inputs(IMAGE | {"shape": [-1, 1]}, TASK), "^Unable to parse 'shape'"),
    (_inputs(IMAGE | {"shape": [True, True]}, TASK), "^Unable to parse 'shape'"),
    (
        _inputs(IMAGE | {"shape": []}, TASK),
        UNKNOWN_ID + "input 'INPUT_IMAGE' has no shape but model requires",
    ),
    (
        _inputs(IMAGE | {"shape": [1, 2]}, TASK),
        UNKNOWN_ID
        + r"unexpected shape for input 'INPUT_IMAGE' for model 'florence2'\. Expected \[-1,1\], got "
        r"\[1,2\]\. NOTE: Setting a non-zero max_batch_size",
    ),
    (_inputs(IMAGE | {"shape": [1, 1, 1]}, TASK), r"Expected \[-1,1\], got \[1,1,1\]"),
    (_inputs(IMAGE | {"shape": [0, 1], "data": []}, TASK), r"got \[0,1\]"),
    (_inputs(IMAGE | {"shape": [2]}, TASK), r"got \[2\]"),
    (_inputs(IMAGE | {"shape": [10**400, 1]}, TASK), "batch-size must be <= 36"),
    (
        _inputs(tensor("INPUT_IMAGE", [PICTURE] * 37), tensor("TASK_PROMPT", ["<OD>"] * 37)),
        UNKNOWN_ID + "inference request batch-size must be <= 36 for 'florence2'$",
    ),
    (
        _inputs(IMAGE | {"data": [PICTURE] * 2}, TASK),
        UNKNOWN_ID + "unexpected number of string elements 2 for inference input 'INPUT_IMAGE' for model "
        "'florence2', expecting 1$",
    ),
    (
        _inputs(IMAGE | {"shape": [2, 1]}, TASK),
        UNKNOWN_ID
        + "expected 2 string elements for inference input 'INPUT_IMAGE' for model 'florence2', got 1$",
    ),
    (
        _inputs(tensor("INPUT_IMAGE", [PICTURE] * 2), TASK),
        UNKNOWN_ID + "input 'TASK_PROMPT' batch size does not match other inputs for 'florence2'$",
    ),
    (
        _inputs({"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES"}, TASK),
        "^Input must set only one of the following fields: 'data', .* But no field is set$",
    ),
    (
        _inputs(IMAGE | {"data": PICTURE}, TASK),
        "^Unable to parse 'data': attempt to access JSON non-array as array$",
    ),
    (_inputs(IMAGE | {"data": [5]}, TASK), "^Unable to parse JSON bytes array"),
    (_inputs(IMAGE | {"data": [PICTURE, None]}, TASK), "^Unable to parse JSON bytes array"),
    (
        _inputs(IMAGE | {"parameters": {"binary_data_size": 5}}, TASK),
        "^Input must set only one of .* But set 'data' 'binary_data_size'$",
    ),
    (_inputs(IMAGE | {"parameters": {"shared_memory_region": "x"}}, TASK), "shared memory is not supported"),
    (_inputs(IMAGE, tensor("TASK_PROMPT", ["\ud800"])), "TASK_PROMPT is not valid Unicode"),
    (_inputs(IMAGE, TASK, tensor("TEXT_PROMPT", ["x" * (MAX_TEXT_CHARS + 1)])), "at most 65536 are allowed"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_is_malformed_is_refused_in_tritons_words(content: Any, message: str) -> None:
    """Each mistake is a client's mistake with the text that Triton's clients know."""
    with pytest.raises(ProtocolError, match=message):
        rows_of(content if isinstance(content, bytes) else body(content))


@pytest.mark.parametrize("character", ["x", "é", "猫", "\U0001f408", '"'])
@pytest.mark.parametrize("escaped", [True, False])
def test_the_longest_text_is_taken_in_any_encoding(character: str, escaped: bool) -> None:
    """The limit on a text counts characters, not the bytes of UTF-8 or of JSON escapes."""
    text = character * MAX_TEXT_CHARS
    tensors = _inputs(IMAGE, tensor("TASK_PROMPT", ["<OD>"]), tensor("TEXT_PROMPT", [text]))
    assert rows_of(json.dumps(tensors, ensure_ascii=escaped).encode())[0].text == text
    tensors["inputs"][2]["data"] = [text + character]
    with pytest.raises(ProtocolError, match=r"has \d+ (characters|bytes); at most 65536 "):
        rows_of(json.dumps(tensors, ensure_ascii=escaped).encode())


def test_a_text_far_too_long_is_refused_by_its_bytes() -> None:
    """A text far over the limit is refused by its bytes, before it is parsed."""
    tensors = _inputs(IMAGE, tensor("TASK_PROMPT", ["<OD>"]), tensor("TEXT_PROMPT", ["x" * 10**6]))
    with pytest.raises(ProtocolError, match=r"has 1000000 bytes; at most 65536 characters are allowed"):
        rows_of(body(tensors))


def test_a_bad_text_in_a_batch_is_named_by_its_row() -> None:
    """An error in one of several rows names the row; with one row it doesn't."""
    pictures, lone = tensor("INPUT_IMAGE", [PICTURE, PICTURE]), "\ud800"
    with pytest.raises(ProtocolError, match=r"^row 1: TASK_PROMPT is not valid Unicode"):
        rows_of(body(_inputs(pictures, tensor("TASK_PROMPT", ["<OD>", lone]))))
    with pytest.raises(ProtocolError, match=r"^TASK_PROMPT is not valid Unicode"):
        rows_of(body(_inputs(tensor("INPUT_IMAGE", [PICTURE]), tensor("TASK_PROMPT", [lone]))))


@given(
    st.lists(
        st.dictionaries(st.text(), JSON_VALUES.filter(lambda value: value == value), max_size=2), max_size=3
    )
)
def test_answers_come_back_through_json(answers: list[dict[str, Any]]) -> None:
    """`json.loads(response["outputs"][0]["data"][i])` is the answer of row i, and the data is flat."""
    texts = [json.dumps(row) for row in answers]
    answer = json.loads(json.dumps(build_infer_answer(InferAnswer(SERVED, "7", texts))))
    output = answer["outputs"][0]
    assert repr([json.loads(row) for row in output.pop("data")]) == repr(json.loads(json.dumps(answers)))
    assert output == {"name": "PARSED_JSON", "datatype": "BYTES", "shape": [len(answers), 1]}
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "florence2", "1")


def test_an_id_that_was_not_sent_does_not_come_back() -> None:
    """An answer to a request without an id, or with an empty one as perf_analyzer sends it, has no id."""
    assert "id" not in build_infer_answer(InferAnswer(SERVED, "", ["{}"]))
