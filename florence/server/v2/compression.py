"""Compresses and decompresses bodies by gzip and deflate, as Triton does.

Pure functions on bytes. Names of encodings are matched exactly, as Triton does; deflate is zlib's format.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from florence.errors import BodyTooLarge, ProtocolError, UnknownEncoding

_WINDOWS: Mapping[str, int] = MappingProxyType({"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS})
ENCODINGS: Final = ", ".join(_WINDOWS)


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body without its encoding, at most `max_bytes` of it. encoding: "" or "identity" for none.

    Raises UnknownEncoding, BodyTooLarge, and ProtocolError for a body that is malformed, cut short, or
    followed by other bytes.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise UnknownEncoding("Unsupported compression type")
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise ProtocolError(f"the body is not valid {encoding}: {error}") from None
    if len(plain) > max_bytes:
        raise BodyTooLarge(max_bytes)
    if not stream.eof:
        raise ProtocolError(f"the body is not valid {encoding}: it is cut short")
    if stream.unused_data:
        raise ProtocolError(
            f"the body is not valid {encoding}: {len(stream.unused_data)} bytes follow its end"
        )
    return plain


def compress(body: bytes, encoding: str) -> bytes:
    """The body in one of the two encodings."""
    stream = zlib.compressobj(wbits=_WINDOWS[encoding])
    return stream.compress(body) + stream.flush()


def choose_encoding(accepted: str) -> str | None:
    """The encoding of highest weight in a request's Accept-Encoding, the first of equals; None: plain."""
    best, best_quality = None, 0.0
    for item in accepted.split(","):
        name, _, parameter = item.partition(";")
        quality = _quality(parameter.strip())
        if name.strip() in _WINDOWS and quality > best_quality:
            best, best_quality = name.strip(), quality
    return best


def _quality(parameter: str) -> float:
    """The weight in `q=0.5`; 1 without one, 0 for a malformed one."""
    if not parameter:
        return 1.0
    name, _, value = parameter.partition("=")
    whole, _, part = value.strip().partition(".")
    digits = whole + part
    if name.strip() != "q" or not digits.isascii() or not digits.isdecimal() or len(digits) > 9:
        return 0.0
    return float(value)
