"""HEIF's and AVIF's boxes (ISO/IEC 23008-12, 14496-12): the largest size and the colour profile in a file.

The decoder turns and crops by other boxes, so the picture may be smaller than `Header` says, or lie on its
side; it is never larger. Knows nothing about decoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from florence.errors import ImageError
from florence.images.header import Header

AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
_FOLDERS: Final = frozenset((b"meta", b"iprp", b"ipco"))
_MAX_BOXES: Final = 10_000
_MAX_PROFILE: Final = 2**20


def read_heif(data: bytes, max_frames: int, number: int) -> Header:
    """The header of a HEIF or AVIF file. The decoder tells how many frames there are.

    Raises ImageError for a file without a size, struct.error for one that is cut short."""
    width = height = 0
    profile = b""
    for kind, body in _boxes(memoryview(data)):
        if kind == b"ispe":
            sizes = struct.unpack_from(">II", body, 4)
            width, height = max((width, height), sizes, key=lambda size: size[0] * size[1])
        elif kind == b"colr" and bytes(body[:4]) in (b"prof", b"rICC") and len(body) <= _MAX_PROFILE:
            profile = profile or bytes(body[4:])
    if not width or not height:
        raise ImageError("the picture's file (HEIF or AVIF) does not say its size")
    name = "AVIF" if _brands(data) & AVIF_BRANDS else "HEIF"
    return Header(name, width, height, 1, 1, data, passes=number, profile=profile, frame=number)


def _brands(data: bytes) -> set[bytes]:
    """The major brand and the compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), 512)
    return {data[at : at + 4] for at in (8, *range(16, end - 3, 4))}


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, body) of each box, those inside the ones that hold pictures' properties too."""
    waiting = [data]
    for _ in range(_MAX_BOXES):
        if not waiting:
            return
        rest = waiting.pop()
        if len(rest) < 8:
            continue
        length, kind = struct.unpack_from(">I4s", rest)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", rest, 8), 16
        end = len(rest) if length == 0 else length
        if end < head:
            raise ImageError("the picture's boxes are damaged: one is shorter than its own head")
        body = rest[head:end]
        waiting.append(rest[end:])
        if kind in _FOLDERS:
            waiting.append(body[4:] if kind == b"meta" else body)  # after its version and flags
        else:
            yield kind, body
    raise ImageError(f"the picture is made of more than {_MAX_BOXES} boxes")
