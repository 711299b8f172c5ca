"""Long strings are left in the body as it came, and the rest of a document is parsed as JSON defines it."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from v2 import parse_infer_request

from florence.errors import ProtocolError, TooMuchStructure
from florence.server.long_strings import (
    LONG,
    MAX_NESTED,
    Document,
    LongString,
    parse_json,
    parsing_cost,
    short_strings,
)
from florence.server.replies import MAX_INLINE
from florence.server.v2.tensors import read_rows

STRINGS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["-Infinity", "NaN", 'a"b', "a\\", '\\"', "[", ",", "\u732b"]),
    st.sampled_from(
        ["x" * (LONG + 1), "\u732b" * LONG, ("x" * 60 + '"') * (LONG // 50), "\\" * LONG, "\n" * LONG]
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)


def resolved(value: Any) -> Any:
    """The value with plain strings in place of long ones."""
    if isinstance(value, LongString):
        return str(value)
    if isinstance(value, list):
        return [resolved(element) for element in value]
    if isinstance(value, dict):
        return {name: resolved(element) for name, element in value.items()}
    return value


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.booleans(), st.sampled_from([None, 1]))
def test_a_document_is_what_json_says(content: dict[str, Any], ascii_: bool, indent: int | None) -> None:
    """Any document gives the values that JSON defines, with escapes, spaces, scripts and long strings."""
    body = json.dumps(content, ensure_ascii=ascii_, indent=indent).encode()
    document = Document(body)
    assert resolved(document.parse()) == parse_json(body) == content
    assert document.size <= len(body)


@given(
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"]),
    st.sampled_from([1, LONG, LONG + 1]),
)
def test_every_encoding_of_json_is_read(encoding: str, length: int) -> None:
    """Each encoding that JSON allows is read."""
    content = {"a": ["x" * length, "y"]}
    assert resolved(Document(json.dumps(content).encode(encoding)).parse()) == content


def test_only_what_is_around_pictures_is_parsed() -> None:
    """Long elements and members, at any indentation, are views into the body, and only the rest is parsed."""
    content = {"a": ["p" * 200_000, "q" * 300_000], "b": "r" * 100_000, "c": [[[["s" * 100]]], "t" * 50_000]}
    for indent in (None, 40):
        body = json.dumps(content, indent=indent).encode()
        document = Document(body)
        assert document.size < 2000
        parsed = document.parse()
        longs = [*parsed["a"], parsed["b"], parsed["c"][1]]
        assert [type(string) for string in longs] == [LongString] * 4
        assert all(string.quoted.obj is body for string in longs)
        assert resolved(parsed) == content


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a":["' + b"x" * 70_000 + b'" 1]}', "Expecting ',' delimiter at 70009"),
        (b'{"a":["' + b"x" * 70_000 + b'",-Infinity]}', "-Infinity is not JSON"),
        (b'{"a":["' + b"x" * 70_000 + b'",NaN]}', "NaN is not JSON"),
        (b'{"a":["' + b"x" * 70_000 + b'"],"' + b"y" * 70_000 + b'":}', "Expecting value at 140013"),
        (b'{"a":["' + b"x" * 70_000, "Unterminated string starting at 6"),
        (b'{"a":["' + b"x" * 70_000 + b'\\"', "Unterminated string starting at 6"),
        (b'{"a":["' + b"x" * 70_000 + b'"]} ["' + b"y" * 70_000 + b'"]', "Extra data at 70011"),
    ],
)
def test_mistakes_have_their_position_in_the_whole_body(body: bytes, message: str) -> None:
    """The position in an error counts the whole body, long strings included."""
    with pytest.raises(ProtocolError, match=f"failed to parse the request JSON buffer: {message}"):
        Document(body).parse()


@pytest.mark.parametrize("wrong", [b"\n", b"\x00", b"\xff"])
def test_a_long_picture_that_is_no_json_string_is_refused(wrong: bytes) -> None:
    """A long string with a control character or invalid UTF-8 is refused when it is read."""
    body = infer_body(b"A" * 80_000 + wrong + b"A" * 80_000)
    (row,) = read_rows(parse_infer_request(body).columns)
    with pytest.raises(ProtocolError, match="failed to parse the request JSON buffer"):
        row.image()


@pytest.mark.parametrize("escaped", [False, True])
def test_a_long_picture_may_be_written_in_any_way_json_allows(escaped: bool) -> None:
    """A picture's base64 may have JSON escapes for slashes and line breaks."""
    picture = random.Random(escaped).randbytes(150_000)
    text = base64.encodebytes(picture).decode() if escaped else base64.b64encode(picture).decode()
    written = json.dumps(text).replace("/", "\\/")[1:-1] if escaped else text
    (row,) = read_rows(parse_infer_request(infer_body(written.encode())).columns)
    assert row.image() == picture


TOO_MUCH = {
    "objects": b'{"inputs":[' + b"{}," * 100_000 + b"0]}",
    "keys": b"{" + b",".join(b'"%d":0' % index for index in range(5000)) + b"}",
    "strings": b'{"a":[' + b",".join([b'""'] * 300_000) + b"]}",
    "digits": b'{"a":' + b"1" * 100_000 + b"}",
    "spaces": b'{"a":1' + b" " * 100_000 + b"}",
    "nesting": b'{"a":' + b"[" * 100_000,
    "escaped quotes": b'{"a":"' + b'\\"' * 600_000 + b'"}',
    "medium strings": b'{"a":[' + b",".join([b'"%b"' % (b"x" * LONG)[:-9]] * 200) + b"]}",
    "a huge key": b'{"' + b"k" * (3 << 20) + b'":1}',
    "a bare string": b'"' + b"k" * (3 << 20) + b'"',
    "UTF-16": ('{"a":"' + "x" * (2 << 20) + '"}').encode("utf-16"),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_structure_that_no_request_means_is_refused_before_it_is_parsed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body with more structure than any request needs is refused before the parser runs."""
    monkeypatch.setattr("florence.server.long_strings.parse_json", None)
    with pytest.raises(TooMuchStructure, match="more than a request can hold"):
        Document(TOO_MUCH[kind])


@given(st.integers(0, 1200), st.sampled_from([("[", "]"), ('{"a":', "}")]))
def test_a_value_is_nested_as_deep_as_a_request_may_need(depth: int, brackets: tuple[str, str]) -> None:
    """Values are nested up to a limit, below which recursive functions don't run out of stack."""
    opening, closing = brackets
    document = Document((opening * depth + "1" + closing * depth).encode())
    if depth <= MAX_NESTED:
        assert short_strings(document.parse()) == json.loads(opening * depth + "1" + closing * depth)
    else:
        with pytest.raises(TooMuchStructure, match="nested in more than 64 levels"):
            document.parse()


@pytest.mark.parametrize("count", range(1, 5))
def test_backslashes_before_a_quote_are_counted(count: int) -> None:
    """An even number of backslashes before a quote ends the string; an odd number doesn't."""
    for extra in (0, 60, 64, 200, 70_000):
        body = b'{"a":["x' + b"\\" * (2 * extra + count) + b'","' + b"y" * 20_000 + b'"]}'
        if count % 2:
            with pytest.raises(ProtocolError):
                Document(body).parse()
        else:
            assert resolved(Document(body).parse()) == parse_json(body)


@settings(max_examples=40)
@given(st.text(alphabet='aA/+"\\\n\u00e9\u732b', max_size=60), st.booleans(), st.integers(1, 5))
def test_pieces_are_the_string(text: str, ascii_: bool, times: int) -> None:
    """The pieces of a string join to it, with cuts through escapes and characters of several bytes."""
    quoted = json.dumps(text * 3000 * times, ensure_ascii=ascii_).encode()
    string = LongString(memoryview(quoted))
    assert "".join(string.pieces()) == str(string) == text * 3000 * times


def test_a_long_picture_costs_no_copy_before_it_is_read() -> None:
    """Parsing a body of 8 MB takes less than a hundredth of its memory; reading the picture takes its own
    size."""
    body = infer_body(b"A" * 8_000_000)
    tracemalloc.start()
    try:
        request = parse_infer_request(body)
        rows = read_rows(request.columns)
        assert tracemalloc.get_traced_memory()[1] < 80_000
        assert len(rows[0].image()) == 6_000_000
        assert tracemalloc.get_traced_memory()[1] < 6_100_000
    finally:
        tracemalloc.stop()


def infer_body(text: bytes) -> bytes:
    """A request whose picture is this text."""
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in (("INPUT_IMAGE", "@"), ("TASK_PROMPT", "<OD>"))
    ]
    return json.dumps({"inputs": inputs}).encode().replace(b"@", text)


def test_a_picture_in_base64_costs_no_parsing_and_all_else_costs_its_bytes() -> None:
    """A long base64 string has no parsing cost; many strings, a body slow to search and one that must be
    decoded first cost all their bytes."""
    inputs = [{"name": "INPUT_IMAGE", "data": ["x" * 2**20]}, {"name": "TASK_PROMPT", "data": ["<OD>"]}]
    picture = json.dumps({"inputs": inputs}).encode()
    assert parsing_cost(picture) <= MAX_INLINE < len(picture)
    assert parsing_cost(bytearray(b"{}")) == 2
    many = json.dumps(["y"] * 2**18)
    for body in (
        many.encode(),
        picture * 5,
        picture.decode().encode("utf-16"),
        picture.decode().encode("utf-16-le"),
    ):
        assert parsing_cost(body) == len(body)
