"""Compresses and decompresses bodies by gzip and deflate, as Triton does.

Pure functions on bytes. Names of encodings are matched exactly, as Triton does; deflate is zlib's format.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from florence.errors import ProtocolError, UnknownEncoding

_WINDOWS: Mapping[str, int] = MappingProxyType({"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS})
PLAIN: Final = ("", "identity")
"""Values of Content-Encoding for a body that is not encoded; "" where there is no such header."""
ENCODINGS: Final = ", ".join(_WINDOWS)
PIECE: Final = 2**17
"""Bytes that are decompressed at a time."""
_PART: Final = 2**16  # bytes that zlib is given at a time: it copies what it has not read yet


def decompressed(body: bytes | bytearray, encoding: str) -> Iterator[bytes]:
    """The body decoded, in pieces of at most `PIECE` bytes, so that no step takes long.

    Raises UnknownEncoding, and ProtocolError for a body that is malformed, cut short, or followed by other
    bytes.
    """
    if encoding not in _WINDOWS:
        raise UnknownEncoding
    stream, packed, plain = zlib.decompressobj(_WINDOWS[encoding]), memoryview(body), b""
    while not stream.eof:
        given: bytes | memoryview = stream.unconsumed_tail
        if not given:
            given, packed = packed[:_PART], packed[_PART:]
        if not given and len(plain) < PIECE:
            raise ProtocolError(f"the body is not valid {encoding}: it is cut short")
        try:
            plain = stream.decompress(given, PIECE)
        except zlib.error as error:
            raise ProtocolError(f"the body is not valid {encoding}: {error}") from None
        yield plain
    if rest := len(stream.unused_data) + len(packed):
        raise ProtocolError(f"the body is not valid {encoding}: {rest} bytes follow its end")


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
