"""Base64 pictures: accepted and refused forms; every failure is an ImageError."""

from __future__ import annotations

import base64
import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence.errors import ImageError
from florence.server.picture import decode_base64, decode_plain_base64


@given(st.binary(min_size=1, max_size=300), st.integers(1, 80), st.sampled_from(["\n", "\r\n", " ", "\t"]))
def test_base64_comes_back_with_any_line_breaks(data: bytes, width: int, line_break: str) -> None:
    """Base64 with line breaks, as `base64` and openssl write it, decodes to the same bytes."""
    text = base64.b64encode(data).decode()
    broken = line_break.join(text[start : start + width] for start in range(0, len(text), width))
    assert decode_base64(broken) == decode_base64(text) == data


@pytest.mark.parametrize(
    "head",
    ["data:image/png;base64,", "DATA:;BASE64,", "data:image/jpg;name=a.jpg;base64,", "\n  data:;base64,"],
)
def test_a_data_uri_is_taken(head: str) -> None:
    """A data URI, as a browser's FileReader gives it, is accepted with any type."""
    assert decode_base64(head + base64.b64encode(b"picture").decode()) == b"picture"


@given(st.text(max_size=200))
def test_any_text_decodes_or_is_an_image_error(text: str) -> None:
    """Any text decodes or is an ImageError."""
    try:
        decoded = decode_base64(text)
    except ImageError:
        return
    assert decoded


@given(
    st.text("AQgw/+=09az-_ \n", max_size=24) | st.binary(max_size=24).map(base64.b64encode).map(bytes.decode)
)
def test_the_fast_decoder_takes_what_pythons_strict_one_takes(text: str) -> None:
    """The fast decoder gives the strict one's bytes, or nothing, in which case the strict one decides; it
    decodes each standard text."""
    fast = decode_plain_base64(text)
    try:
        strict = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        strict = b""
    assert fast in (strict, b"")
    if text == base64.b64encode(strict).decode():
        assert fast == strict


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("data:image/png;base64,", "empty"),
        ("%%%not base64!%%%", "not valid base64"),
        ("QUJD=", "not valid base64"),
        ("QUI", "not valid base64"),
        ("QUI=QUI=", "not valid base64"),
        ("QÜI=", "beyond ASCII"),
        ("QU-_", "not valid base64: it is URL-safe base64, with - and _; send the standard form"),
        ('"QUJD"', """it holds '"', which is not a character of base64; send the encoded text alone"""),
        ("QUI%3D", "it holds '%'.*percent-encoding"),
        ("<img src='data:;base64,QUJD'>", "it holds '<'.*markup"),
        ("Q-J+", "it is URL-safe base64"),
        ("b'QUJD'", "it is Python's text of bytes"),
        ("blob:https://example.org/1234-5678", "not fetched from a URL"),
        ("\n https://example.org/a.png", "not fetched from a URL"),
        ("data:image/png,abc", "data URI is not base64"),
        ("https://example.org/a.png", "not fetched from a URL"),
        ("  file:///etc/passwd", "not fetched from a URL"),
        ("data/scene_02.png", "looks like a path"),
        ("C:\\pictures\\my street.JPG", "looks like a path"),
        ("s3://bucket/a.png", "not fetched from a URL"),
    ],
)
def test_what_is_not_base64_is_refused_with_the_reason(text: str, reason: str) -> None:
    """The error names the reason; Python's lenient decoder would drop other characters and decode wrong
    bytes."""
    with pytest.raises(ImageError, match=reason):
        decode_base64(text)
