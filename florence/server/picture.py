"""A picture as clients send it: an upload, bytes, or base64 text, with or without a data URI's head.

Returns the encoded picture's bytes. `images` recognises their format, and has the limits on bytes, pixels and
frames; here the first bytes only distinguish pictures from base64. Nothing is fetched from a URL here; see
`fetching`.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, cast

import pybase64
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from florence.errors import ImageError, ProtocolError
from florence.images.headers import FIRST_BYTES, FORMATS, SUFFIXES, is_picture
from florence.server.long_strings import LongString

_WHITE_SPACE = b" \t\r\n"
_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_PATH = re.compile(rf"[^\r\n]{{0,250}}({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE)
_URL = re.compile(r"(https?|ftp|file|s3|gs)://|blob:", re.IGNORECASE)
_NOT_AS_IMAGE = (
    "what is sent as image is the picture itself and is not fetched from a URL; send an http or https URL as "
    "image_url"
)
_REPR = re.compile(r"b['\"]")
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/=_-]")
PIECE = 2**20
"""Bytes that are copied at a time, so that no copy holds the interpreter's lock for long."""

Base64Text = str | bytes | bytearray | memoryview | LongString
"""Base64, as it comes from JSON or in a tensor."""


def decode_base64(text: Base64Text) -> bytes:
    """The bytes encoded in base64 text, which may hold white space and begin with a data URI's head.

    Allocates three quarters of the text's size. Raises ImageError when the text is empty, a URL, or not
    base64.
    """
    return decode_plain_base64(text) or _decode_other(text)


def decode_plain_base64(text: Base64Text) -> bytes:
    """The bytes of base64 text without white space and data URI's head; b"" for any other text."""
    try:
        return pybase64.b64decode(text.text if isinstance(text, LongString) else text, validate=True)
    except ValueError:
        return b""


def _decode_other(text: Base64Text) -> bytes:
    """The bytes of base64 with white space or a data URI's head. Raises ImageError for any other text."""
    pieces = _pieces(text)
    first = next(pieces, "").lstrip()
    if _URL.match(first):
        raise ImageError(
            "pictures are not fetched from a URL; send the picture itself, as base64 or as an upload"
        )
    head = _DATA_URI.match(first)
    if head is not None and not head.group().lower().endswith(";base64,"):
        raise ImageError("the picture's data URI is not base64: it must begin with data:image/...;base64,")
    encoded = bytearray()
    try:
        for piece in (first[head.end() if head else 0 :], *pieces):
            encoded += piece.encode("ascii").translate(None, _WHITE_SPACE)
    except UnicodeEncodeError:
        reason = "it holds characters beyond ASCII"
    else:
        decoded = decode_plain_base64(encoded) if len(encoded) % 4 == 0 else b""
        if decoded:
            return decoded
        if not encoded:
            raise ImageError("the picture is empty")
        reason = _reason(first, encoded)
    if _PATH.fullmatch(first):
        raise ImageError(f"{first!r} looks like a path; send the file's bytes, as base64 or as an upload")
    raise ImageError(f"the picture is not valid base64: {reason}")


def _pieces(text: Base64Text) -> Iterator[str]:
    """The text in pieces, none of which holds the interpreter's lock for long."""
    if isinstance(text, LongString):
        yield from text.pieces()
        return
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        yield piece if isinstance(piece, str) else str(piece, "latin-1")


def _reason(first: str, encoded: bytearray) -> str:
    """Why base64 text without white space can't be decoded. `first`: the beginning of the text as it was
    sent."""
    if _REPR.match(first):
        return "it is Python's text of bytes, b'...'; send base64.b64encode(data).decode()"
    foreign = _FOREIGN.search(encoded)
    if foreign is not None:
        return (
            f"it holds {foreign.group().decode()!r}, which is not a character of base64; send the encoded "
            "text alone, without quotes, markup or percent-encoding"
        )
    if b"-" in encoded or b"_" in encoded:
        return "it is URL-safe base64, with - and _; send the standard form, with + and /"
    if len(encoded) % 4:  # the strict decoder lets some padding too much pass
        return (
            "its length is not a multiple of 4: padding (=) or characters are missing or left over; send the "
            "whole text, with its padding"
        )
    try:
        binascii.a2b_base64(encoded[:PIECE], strict_mode=True)
    except binascii.Error as error:
        return str(error)
    return "it holds padding (=) before its end"


def decode_picture(data: bytes | memoryview) -> bytes:
    """The bytes of a picture that was sent as bytes, which may be base64 text.

    The first bytes distinguish the two: base64 text that begins like a picture's file decodes to no picture.
    Raises ImageError as `decode_base64`.
    """
    if is_picture(bytes(data[:FIRST_BYTES])):
        return cast("bytes", data)  # a memoryview will do: copying takes long
    try:
        return decode_base64(data)
    except ImageError:
        if bytes(data[:PIECE]).isascii():
            raise
        raise ImageError(
            f"the picture is neither base64 nor a file in {FORMATS} "
            f"(its first bytes are {bytes(data[:8]).hex(' ')})"
        ) from None


def _take(value: object) -> bytes | Path:
    """Bytes unchanged; text decoded from base64. A Path is kept: BentoML's clients make their requests with
    this type too, and open it there. A received request never holds one: its texts are base64."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not value:
            raise PydanticCustomError("picture", "the picture is empty")
        return cast("bytes", value)
    if isinstance(value, Path):
        return value
    if not isinstance(value, str | LongString):
        raise PydanticCustomError("picture", "must be base64 text, or an upload in multipart/form-data")
    try:
        return decode_base64(value)
    except (ImageError, ProtocolError) as error:
        is_url = isinstance(value, str) and _URL.match(value.lstrip())
        reason = _NOT_AS_IMAGE if is_url else str(error)
        raise PydanticCustomError("picture", "{reason}", {"reason": reason}) from None


def _encode(value: bytes | Path) -> str:
    data = value.read_bytes() if isinstance(value, Path) else value
    return binascii.b2a_base64(data, newline=False).decode("ascii")


EncodedPicture = Annotated[
    bytes,
    PlainValidator(_take),
    PlainSerializer(_encode, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}, mode="serialization"),
    WithJsonSchema({"type": "file", "format": "image"}, mode="validation"),  # BentoML's clients upload files
]
