"""Damaged requests raise only the package's own errors, and take a small multiple of the body as memory.

Bodies are real requests with bytes changed, removed, repeated and inserted, which reach more code than random
bytes.
"""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
from typing import Any

import pytest
from grpc_calls import message
from hypothesis import given, settings
from hypothesis import strategies as st
from v2 import SERVED, parse_infer_request, picture

from florence.errors import FlorenceError
from florence.server.v2.compression import decompressed
from florence.server.v2.grpc_server import read_infer_request
from florence.server.v2.infer_body import parse_generate_request
from florence.server.v2.tensors import pack, read_rows

MIB = 1024 * 1024
ROOM = 200_000  # bytes allowed for any request


def packed_body(image: bytes) -> tuple[bytes, str]:
    """A request with binary tensors, and the length of its JSON."""
    packed = {"INPUT_IMAGE": pack([image, image]), "TASK_PROMPT": pack([b"<OD>", b"<OCR>"])}
    inputs = [
        {"name": name, "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        for name, data in packed.items()
    ]
    head = json.dumps({"id": "7", "inputs": inputs, "parameters": {"num_beams": 1, "timeout": 5}}).encode()
    return head + b"".join(packed.values()), str(len(head))


def json_body(image: bytes, task: str = "<OD>") -> bytes:
    """A request as JSON."""
    text = base64.b64encode(image).decode()
    columns = {"INPUT_IMAGE": [[text]], "TASK_PROMPT": [task], "TEXT_PROMPT": ["a car"]}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": data} for name, data in columns.items()
    ]
    outputs = [{"name": "PARSED_JSON", "parameters": {"binary_data": True}}]
    return json.dumps({"id": "7", "inputs": inputs, "outputs": outputs}).encode()


def generate_body(image: bytes) -> bytes:
    """A request of the generate extension."""
    return json.dumps({"INPUT_IMAGE": base64.b64encode(image).decode(), "TASK_PROMPT": ["<OD>"]}).encode()


def read(infer: Any) -> None:
    """Read all of a request that is read before the model gets it, and its pictures."""
    for row in read_rows(infer.columns):
        row.image()


INSERTED = [b'"', b"\\", b"{", b"[", b"]", b",", b"9" * 30, b"null", b"\xff"]
LARGE = picture((64, 64)) + bytes(100_000)
PACKED, PACKED_HEADER = packed_body(picture())
SEEDS = {
    "json": (json_body(picture()), lambda body: read(parse_infer_request(body))),
    "long json": (json_body(LARGE), lambda body: read(parse_infer_request(body))),
    "packed": (PACKED, lambda body: read(parse_infer_request(body, PACKED_HEADER))),
    "generate": (generate_body(picture()), lambda body: read(parse_generate_request(SERVED, body))),
    "gzip": (
        gzip.compress(json_body(picture())),
        lambda body: read(parse_infer_request(b"".join(decompressed(body, "gzip")))),
    ),
}


@st.composite
def damaged(draw: Any, seed: bytes) -> bytes:
    """The seed after some changes, most of them near its beginning and end, where its structure is."""
    body = bytearray(seed)
    spots = st.integers(0, 400) | st.integers(1, 400).map(lambda back: len(seed) - back)
    for _ in range(draw(st.integers(1, 5))):
        spot = max(0, min(draw(spots), len(body)))
        change = draw(st.sampled_from(["set", "remove", "repeat", "insert", "cut"]))
        if change == "set" and spot < len(body):
            body[spot] = draw(st.integers(0, 255))
        elif change == "remove":
            del body[spot : spot + draw(st.integers(1, 20))]
        elif change == "repeat":
            body[spot:spot] = body[spot : spot + draw(st.integers(1, 200))] * draw(st.integers(1, 3))
        elif change == "insert":
            body[spot:spot] = draw(st.sampled_from(INSERTED))
        elif change == "cut":
            del body[spot:]
    return bytes(body)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
@settings(max_examples=400)
@given(data=st.data())
def test_a_damaged_body_is_a_request_or_an_error_of_ours(name: str, data: Any) -> None:
    """A damaged body is a request or a 4xx, within a small multiple of its memory."""
    seed, codec = SEEDS[name]
    body = data.draw(damaged(seed))
    tracemalloc.start()
    try:
        codec(body)
    except FlorenceError as error:
        assert 400 <= error.status < 500  # noqa: PT017  (either outcome is right)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * len(body) + ROOM


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_message_is_a_request_or_an_error_of_ours(data: Any) -> None:
    """A damaged message that protobuf can read is a request or a 4xx."""
    seed = message({"INPUT_IMAGE": [picture()], "TASK_PROMPT": [b"<OD>"]}, id="7").SerializeToString()
    made = message({"INPUT_IMAGE": [b""], "TASK_PROMPT": [b""]})
    made.Clear()
    try:
        made.ParseFromString(data.draw(damaged(seed)))
    except Exception:  # noqa: BLE001  (protobuf's own: not a message)
        return
    try:
        read(read_infer_request(SERVED, made))
    except FlorenceError as error:
        assert 400 <= error.status < 500  # noqa: PT017  (either outcome is right)


GREEDY = {
    "nested lists": b'{"inputs":' + b"[" * 400_000,
    "many inputs": b'{"inputs":[' + b"{}," * 300_000 + b"{}]}",
    "many strings": json_body(b"x").replace(b'["<OD>"]', b'["' + b'","' * 300_000 + b'"]'),
    "many numbers": json_body(b"x").replace(b"[1, 1]", b"[" + b"1," * 400_000 + b"1]", 1),
    "a long number": json_body(b"x").replace(b"[1, 1]", b"[" + b"1" * 1_000_000 + b"]", 1),
    "a long text": json_body(b"x", "x" * 1_000_000),
    "a long id": json_body(b"x").replace(b'"7"', b'"' + b"7" * 1_000_000 + b'"'),
    "many escapes": json_body(b"x").replace(b'["<OD>"]', b'["' + rb"\u0041" * 200_000 + b'"]'),
    "a wide script": json_body(b"x").replace(b'["<OD>"]', ('["' + "\U0001f600" * 250_000 + '"]').encode()),
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_body_made_to_be_greedy_is_refused_within_its_means(name: str) -> None:
    """A megabyte of the most costly structure is refused, in memory of at most an empty dict for each list
    element."""
    body = GREEDY[name]
    tracemalloc.start()
    try:
        with pytest.raises(FlorenceError) as caught:
            read(parse_infer_request(body))
        assert 400 <= caught.value.status < 500
        assert len(str(caught.value)) < 2000
        assert tracemalloc.get_traced_memory()[1] < 32 * len(body) + ROOM
    finally:
        tracemalloc.stop()
