"""Packed tensors: packing and unpacking, wrong lengths, and pictures as bytes or base64."""

from __future__ import annotations

import base64
import struct
import tracemalloc
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from v2 import SERVED

from florence.errors import FlorenceError, ImageError, ProtocolError
from florence.server.v2.tensors import Tensor, pack, read_columns, read_rows, unpack
from florence.types.options import MAX_TEXT_CHARS

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]


def picture(kind: str) -> bytes:
    """A small picture in this format."""
    file = BytesIO()
    Image.new("RGB", (9, 7), "green").save(file, kind)
    return file.getvalue()


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_what_is_packed_comes_back(elements: list[bytes]) -> None:
    """Unpacking gives the packed elements in order, empty ones included."""
    unpacked = unpack(memoryview(pack(elements)), "INPUT_IMAGE", len(elements))
    assert [bytes(element) for element in unpacked] == elements


@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_packed_bytes_are_elements_or_a_protocol_error(packed: bytes, most: int) -> None:
    """Any bytes give elements that lie inside them, or a ProtocolError."""
    try:
        elements = unpack(memoryview(packed), "INPUT_IMAGE", most)
    except ProtocolError:
        return
    assert len(elements) <= most + 1
    assert packed.startswith(pack(bytes(element) for element in elements))


def test_more_elements_than_rows_are_not_read() -> None:
    """A body of a million empty elements is refused after two, with little memory."""
    packed = memoryview(bytes(4_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="unexpected number of string elements 2"):
            read_columns(SERVED, [Tensor("INPUT_IMAGE", "BYTES", [1, 1], packed)], "")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=60), st.binary(max_size=60), st.none() | st.binary(max_size=60))
def test_any_elements_are_rows_or_an_error_of_ours(image: bytes, task: bytes, text: bytes | None) -> None:
    """Any bytes for picture, task and text are read, or refused with a 4xx."""
    columns = {"INPUT_IMAGE": [image], "TASK_PROMPT": [task]}
    try:
        (row,) = read_rows(columns if text is None else {**columns, "TEXT_PROMPT": [text]})
        assert row.image()
    except FlorenceError as error:
        assert 400 <= error.status < 500  # noqa: PT017  (either outcome is right)
        return
    assert row.task == task.decode()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("encoding", ["raw", "base64", "data URI"])
def test_pictures_in_binary_are_taken_raw_and_in_base64(kind: str, encoding: str) -> None:
    """The bytes show whether a picture is raw or base64; both are accepted in each format."""
    raw = picture(kind)
    text = base64.b64encode(raw)
    sent = {"raw": raw, "base64": text, "data URI": b"data:image/x;base64," + text}[encoding]
    (row,) = read_rows({"INPUT_IMAGE": [memoryview(sent)], "TASK_PROMPT": [memoryview(b"<OD>")]})
    assert (row.image(), row.task, row.text) == (raw, "<OD>", None)


@pytest.mark.parametrize(
    ("image", "task", "error", "message"),
    [
        (b"", b"<OD>", ImageError, "the picture is empty"),
        (b"\x00\x01\xff", b"<OD>", ImageError, r"neither base64 nor .* \(its first bytes are 00 01 ff\)"),
        (b"%%%", b"<OD>", ImageError, "not valid base64"),
        (picture("PNG"), b"\xff", ProtocolError, "TASK_PROMPT is not valid UTF-8"),
        (picture("PNG"), b"x" * (4 * MAX_TEXT_CHARS + 1), ProtocolError, "at most 65536 characters"),
        (picture("PNG"), b"x" * (MAX_TEXT_CHARS + 1), ProtocolError, "at most 65536 are allowed"),
    ],
)
def test_bytes_that_are_no_row_are_refused(
    image: bytes, task: bytes, error: type[FlorenceError], message: str
) -> None:
    """The error names the input and its fault."""
    with pytest.raises(error, match=message):
        read_rows({"INPUT_IMAGE": [image], "TASK_PROMPT": [task]})[0].image()


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (
            struct.pack("<I", 1000) + b"abc",
            "^incomplete string data for inference input 'INPUT_IMAGE', expecting string of length 1000 but "
            "only 3 bytes available$",
        ),
        (
            b"ab",
            "^incomplete string length indicator for inference input 'INPUT_IMAGE', expecting 4 bytes but "
            "only 2 bytes available$",
        ),
        (
            b"",
            r"^\[request id: 7\] expected 1 string elements for inference input 'INPUT_IMAGE' for model "
            "'florence2', got 0$",
        ),
    ],
)
def test_lengths_that_do_not_fit_are_refused_in_tritons_words(packed: bytes, message: str) -> None:
    """An element cut short, and no element at all, are refused in Triton's words."""
    with pytest.raises(ProtocolError, match=message):
        read_columns(SERVED, [Tensor("INPUT_IMAGE", "BYTES", [1, 1], memoryview(packed))], "7")
