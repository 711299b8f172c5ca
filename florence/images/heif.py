"""HEIF's and AVIF's boxes (ISO/IEC 23008-12, 14496-12): the largest size in a file, the work of decoding it,
and its colour profile.

A picture may be a grid or an overlay of others, and use one of them thousands of times.

The decoder turns and crops by other boxes, so the picture may be smaller than `Header` says, or lie on its
side; it is never larger. Knows nothing about decoding.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final

from florence.errors import ImageError, ImageTooLarge
from florence.images.header import Header

HeifBox = tuple[bytes, memoryview]
"""Its kind and its body."""
AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
_FOLDERS: Final = frozenset((b"meta", b"iprp"))
_MAX_BOXES: Final = 10_000
_MAX_PARTS: Final = 50_000  # of grids and overlays; each is looked up
_MAX_DEPTH: Final = 8
_MAX_PASSES: Final = 10**9  # a longer number says no more
_MAX_PROFILE: Final = 2**20


def read_heif(data: bytes, max_frames: int, number: int) -> Header:
    """The header of a HEIF or AVIF file. The decoder tells how many frames there are.

    Raises ImageError for a file without a size, struct.error for one that is cut short."""
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
    passes = max(number, min(-(-items.most_pixels(area) // area), _MAX_PASSES))
    return Header(name, width, height, 1, 1, data, passes=passes, profile=profile, frame=number)


def _size(box: HeifBox) -> tuple[int, int] | None:
    kind, body = box
    return struct.unpack_from(">II", body, 4) if kind == b"ispe" else None


def _profile(kind: bytes, body: memoryview) -> bytes:
    known = kind == b"colr" and bytes(body[:4]) in (b"prof", b"rICC") and len(body) <= _MAX_PROFILE
    return bytes(body[4:]) if known else b""


class _Items:
    """The pictures in a file: what each is made of, and the properties that it has."""

    def __init__(self) -> None:
        self.properties: list[HeifBox] = []
        self._parts: dict[int, Counter[int]] = {}  # how often each part is in it
        self._links: dict[int, list[int]] = {}  # numbers of properties, from 1
        self._count = 0

    def read_parts(self, body: memoryview) -> None:
        """From the references between items."""
        letter = "I" if body[0] else "H"  # of an item's number, by the box's version
        size = struct.calcsize(f">{letter}")
        for kind, reference in _inside(body[4:]):
            if kind != b"dimg":
                continue
            whole, count = struct.unpack_from(f">{letter}H", reference)
            self._count += count
            if self._count > _MAX_PARTS:
                raise ImageTooLarge(f"the picture is put together from more than {_MAX_PARTS} parts")
            parts = struct.unpack_from(f">{count}{letter}", reference, size + 2)
            self._parts.setdefault(whole, Counter()).update(parts)

    def read_links(self, body: memoryview) -> None:
        """From the box that says which properties an item has."""
        (flags, items), at = struct.unpack_from(">II", body), 8
        item, link = ("I" if flags >> 24 else "H"), ("H" if flags & 1 else "B")
        for _ in range(min(items, len(body))):
            number, count = struct.unpack_from(f">{item}B", body, at)
            at += struct.calcsize(f">{item}B")
            links = struct.unpack_from(f">{count}{link}", body, at)
            at += struct.calcsize(f">{count}{link}")
            mask = 0x7FFF if flags & 1 else 0x7F  # without the bit that says that it matters
            self._links.setdefault(number, []).extend(each & mask for each in links)

    def most_pixels(self, largest: int) -> int:
        """Those that are decoded and put together for the costliest item. largest: of an item that does not
        say its size."""
        known: dict[int, int] = {}

        def pixels(item: int, depth: int) -> int:
            if depth > _MAX_DEPTH:
                raise ImageError("the picture is put together from parts of parts, too deep or in a circle")
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
    """The major brand and the compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), 512)
    return {data[at : at + 4] for at in (8, *range(16, end - 3, 4))}


def _boxes(data: memoryview) -> Iterator[HeifBox]:
    """(kind, body) of each box, those inside the ones that hold what describes pictures too."""
    for kind, body in _inside(data):
        if kind in _FOLDERS:
            yield from _boxes(body[4:] if kind == b"meta" else body)  # after its version and flags
        else:
            yield kind, body


def _inside(data: memoryview) -> Iterator[HeifBox]:
    """(kind, body) of each box, one behind the other."""
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
            raise ImageError("the picture's boxes are damaged: one is shorter than its own head")
        yield kind, data[head:end]
        data = data[end:]
