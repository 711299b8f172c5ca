"""gRPC messages: rows are read in order, answers are packed, and wrong messages are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grpc_calls import JPEG, caption, message
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from v2 import SERVED

from florence.errors import FlorenceError, ProtocolError
from florence.server.v2.grpc_server import infer_response, read_infer_request
from florence.server.v2.tensors import InferAnswer, read_rows, unpack


@given(st.permutations(["INPUT_IMAGE", "TASK_PROMPT", "TEXT_PROMPT"]), st.integers(1, 36), st.booleans())
def test_rows_come_back_in_order(names: list[str], count: int, raw: bool) -> None:
    """Rows are read in order, packed or as contents, for any order of the inputs."""
    columns = {
        "INPUT_IMAGE": [JPEG + bytes([index]) for index in range(count)],
        "TASK_PROMPT": [f"<T{index}>".encode() for index in range(count)],
        "TEXT_PROMPT": [f"text {index}".encode() for index in range(count)],
    }
    made = message({name: columns[name] for name in names}, raw=raw, id="7")
    infer = read_infer_request(SERVED, made)
    rows = read_rows(infer.columns)
    assert [row.image() for row in rows] == columns["INPUT_IMAGE"]
    assert [row.task for row in rows] == [f"<T{index}>" for index in range(count)]
    assert [row.text for row in rows] == [f"text {index}" for index in range(count)]
    assert infer.id == "7"


@given(st.binary(max_size=300))
def test_any_message_is_a_request_or_an_error_of_ours(data: bytes) -> None:
    """Any fields that protobuf reads from random bytes, merged into a good request, give a request or a
    4xx."""
    made = caption(JPEG)
    try:
        made.MergeFromString(data)
    except Exception:  # noqa: BLE001  (protobuf's own: not a message)
        return
    try:
        assert read_infer_request(SERVED, made).row_count >= 1
    except FlorenceError as error:
        assert 400 <= error.status < 500  # noqa: PT017  (either outcome is right)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2), max_size=4))
def test_answers_go_out_packed(answers: list[dict[str, str]]) -> None:
    """An answer is one output with a JSON text for each row in raw contents, as in Triton."""
    response = infer_response(InferAnswer(SERVED, "7", [json.dumps(row) for row in answers]))
    assert (response.id, response.model_name, response.model_version) == ("7", "florence2", "1")
    (output,), (packed,) = response.outputs, response.raw_output_contents
    assert (output.name, output.datatype, list(output.shape)) == ("PARSED_JSON", "BYTES", [len(answers), 1])
    elements = unpack(memoryview(packed), "PARSED_JSON", len(answers))
    assert [json.loads(bytes(element)) for element in elements] == answers


def test_parameters_of_every_type_are_read() -> None:
    """Parameters of each protobuf type are read; perf_analyzer's own is accepted."""
    made = caption(JPEG)
    made.parameters["num_beams"].int64_param = 2
    made.parameters["length_penalty"].double_param = 1.5
    made.parameters["early_stopping"].bool_param = False
    made.parameters["other"].string_param = "x"
    made.parameters["timeout"].uint64_param = 5
    made.parameters["triton_enable_empty_final_response"].bool_param = True
    assert read_infer_request(SERVED, made).parameters == {
        "num_beams": 2,
        "length_penalty": 1.5,
        "early_stopping": False,
        "other": "x",
        "timeout": 5,
        "triton_enable_empty_final_response": True,
    }


def changed(change: Any) -> Any:
    """A caption request after this change."""
    made = caption(JPEG)
    change(made)
    return made


REFUSED: list[tuple[Any, str]] = [
    (
        lambda made: made.inputs[0].contents.bytes_contents.append(b"x"),
        "^contents field must not be specified when using raw_input_contents for 'INPUT_IMAGE' for model "
        "'florence2'$",
    ),
    (
        lambda made: made.raw_input_contents.pop(),
        r"^unable to find data for input tensor 'TASK_PROMPT' for model 'florence2' in request\.$",
    ),
    (lambda made: made.ClearField("raw_input_contents"), "^.request id.* expected 1 string elements"),
    (lambda made: made.inputs.pop(), "missing required input"),
    (lambda made: made.inputs.add(name="NOPE"), "^unexpected inference input 'NOPE' for model 'florence2'$"),
    (lambda made: made.outputs.add(name="NOPE"), "^unexpected inference output 'NOPE'"),
    (lambda made: setattr(made.inputs[0], "datatype", "FP32"), "data-type is 'FP32', but model"),
    (lambda made: setattr(made.inputs[0], "datatype", "bytes"), "data-type is '<invalid>', but model"),
    (lambda made: made.inputs[0].shape.append(2), r"Expected \[-1,1\], got \[1,1,2\]"),
    (lambda made: made.inputs[0].ClearField("shape"), "has no shape but model requires batch dimension"),
    (
        lambda made: made.inputs[0].MergeFrom(service_pb2.ModelInferRequest.InferInputTensor(shape=[-1])),
        r"got \[1,1,-1\]",
    ),
    (lambda made: made.parameters["triton_foo"].SetInParent(), "reserved for Triton usage"),
    (lambda made: made.parameters["a"].SetInParent(), "^parameter 'a' has invalid type"),
    (
        lambda made: made.raw_input_contents.__setitem__(0, b"ab"),
        "^incomplete string length indicator for inference input 'INPUT_IMAGE'",
    ),
]


@pytest.mark.parametrize(("change", "text"), REFUSED)
def test_what_does_not_fit_is_refused_in_tritons_words(change: Any, text: str) -> None:
    """Contents, names, types and shapes that contradict each other or the model are refused in Triton's
    words."""
    with pytest.raises(ProtocolError, match=text):
        read_infer_request(SERVED, changed(change))
