"""A picture as clients send it: an upload, bytes, or base64 text, with or without a data URI's head.

Returns the encoded picture's bytes. `images` recognises their format, and has the limits on bytes, pixels and
frames; here the first bytes only distinguish pictures from base64. Nothing is fetched from a URL.
"""

from __future__ import annotations

import binascii
import re
from pathlib import Path
from typing import Annotated

import pybase64
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from florence.errors import ImageError

_WHITE_SPACE = b" \t\r\n"
_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_FIRST_BYTES = re.compile(rb"\x89PNG|\xff\xd8|GIF8|RIFF....WEBP|BM|II[*+]\0|MM\0[*+]", re.DOTALL)
_PATH = re.compile(r"[^\r\n]{0,250}\.(png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)
_URL = re.compile(r"\s*(https?|ftp|file|s3|gs)://", re.IGNORECASE)


def decode_base64(text: str | bytes | memoryview) -> bytes:
    """The bytes encoded in base64 text, which may hold white space and begin with a data URI's head.

    Takes three quarters of the text's size. Raises ImageError when the text is empty, a URL, or not base64.
    """
    return decode_plain_base64(text) or _decode_other(text if isinstance(text, str) else str(text, "latin-1"))


def decode_plain_base64(text: str | bytes | memoryview) -> bytes:
    """The bytes of base64 text without white space and data URI's head; b"" for any other text."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _decode_other(text: str) -> bytes:
    """The bytes of base64 with white space or a data URI's head; ImageError for any other text."""
    if _URL.match(text):
        raise ImageError(
            "pictures are not fetched from a URL; send the picture itself, as base64 or as an upload"
        )
    head = _DATA_URI.match(text)
    if head is not None and not head.group().lower().endswith(";base64,"):
        raise ImageError("the picture's data URI is not base64: it must begin with data:image/...;base64,")
    try:
        encoded = text[head.end() if head else 0 :].encode("ascii").translate(None, _WHITE_SPACE)
        if len(encoded) % 4:  # strict_mode lets some padding too much pass
            raise binascii.Error("its length is not a multiple of 4: characters are missing or left over")
        decoded = binascii.a2b_base64(encoded, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        if _PATH.fullmatch(text):
            raise ImageError(
                f"{text!r} looks like a path; send the file's bytes, as base64 or as an upload"
            ) from None
        reason = str(error) if isinstance(error, binascii.Error) else "it holds characters beyond ASCII"
        raise ImageError(f"the picture is not valid base64: {reason}") from None
    if not decoded:
        raise ImageError("the picture is empty")
    return decoded


def decode_picture(data: bytes | memoryview) -> bytes:
    """The bytes of a picture that was sent as bytes, which may be base64 text.

    The first bytes distinguish the two: base64 text that begins like a picture's file decodes to no picture.
    Raises ImageError as `decode_base64`.
    """
    if _FIRST_BYTES.match(data):
        return bytes(data)
    try:
        return decode_base64(data)
    except ImageError:
        if bytes(data).isascii():
            raise
        raise ImageError(
            "the picture is neither base64 nor a PNG, JPEG, WebP, GIF, BMP or TIFF file "
            f"(its first bytes are {bytes(data[:8]).hex(' ')})"
        ) from None


def _take(value: object) -> bytes | Path:
    """Bytes as they are, text as base64. A path is kept: BentoML's clients make their requests with this
    type too, and open it; a request never holds one, since what comes as text is base64."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not value:
            raise PydanticCustomError("picture", "the picture is empty")
        return bytes(value)
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("picture", "must be base64 text, or an upload in multipart/form-data")
    try:
        return decode_base64(value)
    except ImageError as error:
        raise PydanticCustomError("picture", "{reason}", {"reason": str(error)}) from None


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
