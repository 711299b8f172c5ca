"""TIFF's directories: the size, pages and orientation of a picture, and the orientation in an EXIF block.

A TIFF file is a chain of directories of tags, one directory a page; EXIF has the same layout. `read_tiff`
rewrites a file to one directory with the tags that describe pixels: others only break or slow the decoder.

Knows nothing about decoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from florence.errors import ImageError

# Bytes of one value by the number of its type (TIFF 6.0 section 2; 16 to 18 are BigTIFF's).
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274
# One value each: size, compression, photometric, fill order, samples, strip rows, planes, predictor, tile.
_SINGLE_TAGS = frozenset((_WIDTH, _HEIGHT, 259, 262, 266, 277, 278, 284, 317, 322, 323))
# Bits, strip offsets and counts, T4 and T6 options, colour map, tile offsets and counts, extra samples,
# sample format, JPEG tables, old-style JPEG, YCbCr.
_LIST_TAGS = frozenset(
    (258, 273, 279, 292, 293, 320, 324, 325, 338, 339, 347, *range(512, 522), *range(529, 533))
)

_MAX_TAGS = 4096


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """`width` and `height` as stored; `data`: the file with only its first page and that one's pixel tags."""

    width: int
    height: int
    frames: int
    orientation: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Layout:
    """Byte order and field widths, as the first bytes of the file tell them."""

    order: str  # "<" or ">"
    big: bool  # BigTIFF: 8 byte offsets

    def read(self, code: str, data: bytes, position: int) -> int:
        if position > len(data):  # BigTIFF's offsets can be too large even for struct to refuse
            raise struct.error("an offset points behind the end of the file")
        value: int = struct.unpack_from(self.order + code, data, position)[0]
        return value

    @property
    def offset_code(self) -> str:
        return "Q" if self.big else "I"

    @property
    def count_code(self) -> str:
        return "Q" if self.big else "H"

    @property
    def inline(self) -> int:
        """Bytes of values that stand in the entry itself."""
        return 8 if self.big else 4


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: int
    type: int
    count: int
    field: bytes  # the values, or the offset of them
    values_at: int


def read_tiff(data: bytes, max_frames: int) -> TiffHeader:
    """The header of a TIFF or BigTIFF file; pages are counted up to `max_frames` + 1.

    Raises ImageError for a directory that is broken, struct.error for one that is cut short.
    """
    layout = _layout(data)
    first = layout.read(layout.offset_code, data, 8 if layout.big else 4)
    entries = {entry.tag: entry for entry in _entries(layout, data, first)}
    single = {tag: _integer(layout, data, entry) for tag, entry in entries.items() if tag in _SINGLE_TAGS}
    if _WIDTH not in single or _HEIGHT not in single:
        raise ImageError("the TIFF file does not say its size")
    orientation = _orientation(layout, data, entries.get(_ORIENTATION))
    kept = [_single_entry(layout, tag, value) for tag, value in single.items()]
    kept += [_list_entry(layout, data, entry) for tag, entry in entries.items() if tag in _LIST_TAGS]
    return TiffHeader(
        width=single[_WIDTH],
        height=single[_HEIGHT],
        frames=_count_pages(layout, data, first, max_frames),
        orientation=orientation,
        data=_with_directory(layout, data, sorted(kept)),
    )


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) that an EXIF block gives; 1, "as stored", where it is broken or silent."""
    try:
        layout = _layout(exif)
        for entry in _entries(layout, exif, layout.read("I", exif, 4)):
            if entry.tag == _ORIENTATION:
                return _orientation(layout, exif, entry)
    except (struct.error, ImageError):
        return 1
    return 1


def _layout(data: bytes) -> _Layout:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ImageError("the TIFF header does not give its byte order")
    return _Layout(order, big=struct.unpack_from(order + "H", data, 2)[0] == 43)


def _entries(layout: _Layout, data: bytes, position: int) -> Iterator[_Entry]:
    count = layout.read(layout.count_code, data, position)
    if count > _MAX_TAGS:
        raise ImageError(f"the TIFF directory has {count} tags; up to {_MAX_TAGS} are read")
    position += struct.calcsize("<" + layout.count_code)
    for _ in range(count):
        tag, kind = struct.unpack_from(layout.order + "HH", data, position)
        number = layout.read(layout.offset_code, data, position + 4)
        at = position + 4 + layout.inline
        field = data[at : at + layout.inline]
        if len(field) < layout.inline:
            raise struct.error("the directory is cut short")
        size = _TYPE_SIZES.get(kind, 1) * number
        yield _Entry(
            tag,
            kind,
            number,
            field,
            at if size <= layout.inline else layout.read(layout.offset_code, data, at),
        )
        position = at + layout.inline


def _integer(layout: _Layout, data: bytes, entry: _Entry) -> int:
    """The first value of a tag that is to have one."""
    code = _INTEGERS.get(entry.type)
    if code is None or entry.count < 1:
        raise ImageError(f"TIFF tag {entry.tag} does not hold a whole number")
    return layout.read(code, data, entry.values_at)


def _orientation(layout: _Layout, data: bytes, entry: _Entry | None) -> int:
    if entry is None or entry.count != 1 or entry.type not in _INTEGERS:
        return 1
    value = layout.read(_INTEGERS[entry.type], data, entry.values_at)
    return value if 1 <= value <= 8 else 1


def _single_entry(layout: _Layout, tag: int, value: int) -> tuple[int, bytes]:
    if value >= 1 << 32:
        raise ImageError(f"TIFF tag {tag} holds {value}, which no picture has")
    field = struct.pack(layout.order + "I", value).ljust(layout.inline, b"\0")
    return tag, struct.pack(layout.order + "HH" + layout.offset_code, tag, 4, 1) + field


def _list_entry(layout: _Layout, data: bytes, entry: _Entry) -> tuple[int, bytes]:
    size = _TYPE_SIZES.get(entry.type, 1) * entry.count
    if entry.values_at + size > len(data):
        raise ImageError(f"the picture is cut short: TIFF tag {entry.tag} points behind the end of the file")
    head = struct.pack(layout.order + "HH" + layout.offset_code, entry.tag, entry.type, entry.count)
    return entry.tag, head + entry.field


def _count_pages(layout: _Layout, data: bytes, position: int, max_frames: int) -> int:
    entry_size = 4 + 2 * layout.inline
    seen: set[int] = set()
    while position and position not in seen and len(seen) <= max_frames:
        seen.add(position)
        try:
            count = layout.read(layout.count_code, data, position)
            behind = position + struct.calcsize("<" + layout.count_code) + entry_size * count
            position = layout.read(layout.offset_code, data, behind)
        except struct.error:
            break  # the last page's directory is cut short; only the first page is decoded
    return len(seen)


def _with_directory(layout: _Layout, data: bytes, entries: list[tuple[int, bytes]]) -> bytes:
    """The file with a new directory at its end, which its header points to."""
    padding = b"\0" * (len(data) % 2)  # directories begin at even offsets
    at = struct.pack(layout.order + layout.offset_code, len(data) + len(padding))
    head = data[:8] if layout.big else data[:4]
    count = struct.pack(layout.order + layout.count_code, len(entries))
    end = b"\0" * layout.inline  # no next page
    body = data[len(head) + len(at) :]
    return b"".join([head, at, body, padding, count, *(entry for _, entry in entries), end])
