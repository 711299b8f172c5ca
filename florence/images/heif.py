"""HEIF's and AVIF's boxes (ISO/IEC 23008-12, 14496-12): the largest size in a file, the work of decoding it,
and its colour profile.

A picture may be a grid or an overlay of others, and may use one of them thousands of times.

The decoder also turns and crops as other boxes say, so a picture may be smaller than `Header` says, or have
its sides swapped, but is never larger. Knows nothing about decoding.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final

from florence.errors import ImageError, ImageTooLarge
from florence.images.header import MAX_PROFILE, Header

HeifBox = tuple[bytes, memoryview]
"""A box's kind and body."""
AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
_CONTAINERS: Final = frozenset((b"meta", b"iprp"))
_MAX_BOXES: Final = 10_000
_MAX_PARTS: Final = 50_000  # parts of grids and overlays; each costs a look-up
_MAX_DEPTH: Final = 8
_MAX_PASSES: Final = 10**9  # larger numbers are cut to this


def read_heif(data: bytes, max_frames: int, number: int) -> Header:
    """The header of a HEIF or AVIF file. The decoder tells how many frames there are.

    Raises `ImageError` for a file without a size, `struct.error` for one that is truncated."""
    width = height = 0
    profile = b""
    items = _Items()
    for kind, body in _boxes(memoryview(data)):
        if kind == b"ipco":
            items.properties = list(_inside(body))
            for size in filter(None, map(_size, items.properties)):
                width, height = max((width, height), size, key=lambda size: size[0] * size[1])
            profiles = (_profile(*each) for each in items.properties)
            profile = profile or next(filter(None, profiles), b"")
        elif kind == b"iref":
            items.read_parts(body)
        elif kind == b"ipma":
            items.read_links(body)
    if not width or not height:
        raise ImageError("the picture's file (HEIF or AVIF) does not say its size")
    name = "AVIF" if _brands(data) & AVIF_BRANDS else "HEIF"
    area = width * height
    passes = max(number, min(-(-items.max_pixels(area) // area), _MAX_PASSES))
    return Header(name, width, height, 1, 1, data, passes=passes, profile=profile, frame=number)


def _size(box: HeifBox) -> tuple[int, int] | None:
    kind, body = box
    return struct.unpack_from(">II", body, 4) if kind == b"ispe" else None


def _profile(kind: bytes, body: memoryview) -> bytes:
    known = kind == b"colr" and bytes(body[:4]) in (b"prof", b"rICC") and len(body) <= MAX_PROFILE
    return bytes(body[4:]) if known else b""


class _Items:
    """The pictures (items) in a file, with each one's parts and properties."""

    def __init__(self) -> None:
        self.properties: list[HeifBox] = []
        self._parts: dict[int, Counter[int]] = {}  # how often each part is used
        self._links: dict[int, list[int]] = {}  # indices of properties, from 1
        self._count = 0

    def read_parts(self, body: memoryview) -> None:
        """Read the box of references between items."""
        letter = "I" if body[0] else "H"  # the width of item ids depends on the box's version
        size = struct.calcsize(f">{letter}")
        for kind, reference in _inside(body[4:]):
            if kind != b"dimg":
                continue
            whole, count = struct.unpack_from(f">{letter}H", reference)
            self._count += count
            if self._count > _MAX_PARTS:
                raise ImageTooLarge(f"the picture is composed of more than {_MAX_PARTS} parts")
            parts = struct.unpack_from(f">{count}{letter}", reference, size + 2)
            self._parts.setdefault(whole, Counter()).update(parts)

    def read_links(self, body: memoryview) -> None:
        """Read the box that assigns properties to items."""
        (flags, items), at = struct.unpack_from(">II", body), 8
        item, link = ("I" if flags >> 24 else "H"), ("H" if flags & 1 else "B")
        for _ in range(min(items, len(body))):
            number, count = struct.unpack_from(f">{item}B", body, at)
            at += struct.calcsize(f">{item}B")
            links = struct.unpack_from(f">{count}{link}", body, at)
            at += struct.calcsize(f">{count}{link}")
            mask = 0x7FFF if flags & 1 else 0x7F  # without the bit that marks it as essential
            self._links.setdefault(number, []).extend(each & mask for each in links)

    def max_pixels(self, largest: int) -> int:
        """How many pixels are decoded and composed for the most expensive item. `largest`: pixels of an item
        that has no size of its own."""
        known: dict[int, int] = {}

        def pixels(item: int, depth: int) -> int:
            if depth > _MAX_DEPTH:
                raise ImageError("the picture's parts are nested too deep, or in a cycle")
            if item not in known:
                parts = self._parts.get(item, Counter())
                made = sum(count * pixels(part, depth + 1) for part, count in parts.items())
                known[item] = made + self._own_pixels(item, largest)
            return known[item]

        return max((pixels(item, 0) for item in self._parts), default=0)

    def _own_pixels(self, item: int, largest: int) -> int:
        linked = [self.properties[n - 1] for n in self._links.get(item, []) if n <= len(self.properties)]
        return max((w * h for w, h in filter(None, map(_size, linked))), default=largest)


def _brands(data: bytes) -> set[bytes]:
    """The file's major brand and compatible brands."""
    end = min(int.from_bytes(data[:4], "big"), 512)
    return {data[at : at + 4] for at in (8, *range(16, end - 3, 4))}


def _boxes(data: memoryview) -> Iterator[HeifBox]:
    """(kind, body) of each box, also of those nested in the containers that describe pictures."""
    for kind, body in _inside(data):
        if kind in _CONTAINERS:
            yield from _boxes(body[4:] if kind == b"meta" else body)  # skip its version and flags
        else:
            yield kind, body


def _inside(data: memoryview) -> Iterator[HeifBox]:
    """(kind, body) of each box at one level, in order."""
    count = 0
    while len(data) >= 8:
        count += 1
        if count > _MAX_BOXES:
            raise ImageError(f"the picture is made of more than {_MAX_BOXES} boxes")
        length, kind = struct.unpack_from(">I4s", data)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", data, 8), 16
        end = len(data) if length == 0 else length
        if end < head:
            raise ImageError("the picture's boxes are damaged: one is shorter than its own header")
        yield kind, data[head:end]
        data = data[end:]
