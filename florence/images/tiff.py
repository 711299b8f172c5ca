"""TIFF's directories: the size, pages and orientation of a picture, and the orientation in an EXIF block.

A TIFF file is a chain of directories of tags, one directory a page; EXIF has the same layout. `read_tiff`
makes a file with a single directory for the requested page, which holds only the tags that describe pixels:
Pillow would warn of broken tags among the others. How the pixels are stored is checked before libtiff sees
the file: the compression, and the number and size of the strips or tiles. Knows nothing about decoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from florence.errors import ImageError, ImageTooLarge
from florence.images.header import MAX_PROFILE, Header

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
_COMPRESSION, _PHOTOMETRIC, _BITS, _SAMPLES, _STRIP_ROWS, _PLANES = 259, 262, 258, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _TILE_OFFSETS = 322, 323, 273, 324
_SAMPLE_FORMAT: Final = 339
_FORMATS: Final = {2: "signed ", 3: "floating-point "}
_PROFILE: Final = 34675
_RGB: Final = 2
_MAX_TAGS: Final = 4096
_MAX_PARTS: Final = 65_536
"""Most strips or tiles: far more than any encoder writes; each costs some 6 µs."""
_MAX_SAMPLES: Final = 8
_MAX_BITS: Final = 64
COMPRESSIONS: Final = {
    1: "none", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "JPEG of TIFF 6.0",
    7: "JPEG", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard",
}  # fmt: skip
"""The compressions that Pillow's libtiff decodes."""
_MAX_PADDING: Final = 4
_SMALL_TILE: Final = 512 * 512
"""Pixels of a tile that may be larger than the picture, as encoders with fixed tile sizes write it."""


class _Entry(NamedTuple):
    tag: int
    type: int
    number: int  # of values
    field: bytes  # the values, or their offset
    values_at: int


class _File:
    """A TIFF or BigTIFF file or an EXIF block. Methods raise `struct.error` where it is truncated."""

    def __init__(self, data: bytes) -> None:
        order = {b"II": "<", b"MM": ">"}.get(data[:2])
        if order is None:
            raise ImageError("the TIFF header does not give its byte order")
        self.data, self.order = data, order
        self.big = self.read("H", 2) == 43
        self.offset, self.count = "QQ" if self.big else "IH"  # struct codes of an offset and of a count
        self.inline = 8 if self.big else 4  # bytes of values that fit into the entry itself

    def read(self, code: str, position: int) -> int:
        if position > len(self.data):  # BigTIFF offsets can be too large even for struct to reject
            raise struct.error("an offset points behind the end of the file")
        value: int = struct.unpack_from(self.order + code, self.data, position)[0]
        return value

    def pack(self, codes: str, *values: int) -> bytes:
        return struct.pack(self.order + codes, *values)

    def entries(self, position: int) -> Iterator[_Entry]:
        """The entries of the directory at a position."""
        count = self.read(self.count, position)
        if count > _MAX_TAGS:
            raise ImageError(f"the TIFF directory has {count} tags; up to {_MAX_TAGS} are read")
        position += struct.calcsize("<" + self.count)
        for _ in range(count):
            tag, kind = self.read("H", position), self.read("H", position + 2)
            number, at = self.read(self.offset, position + 4), position + 4 + self.inline
            behind = self.read(self.offset, at)
            inside = _TYPE_SIZES.get(kind, 1) * number <= self.inline
            field = self.data[at : at + self.inline]
            yield _Entry(tag, kind, number, field, at if inside else behind)
            position = at + self.inline

    def orientation(self, entries: dict[int, _Entry]) -> int:
        """1 to 8; 1, "as stored", where it is broken or absent."""
        entry = entries.get(_ORIENTATION)
        if entry is None or entry.number != 1 or entry.type not in _INTEGERS:
            return 1
        value = self.read(_INTEGERS[entry.type], entry.values_at)
        return value if 1 <= value <= 8 else 1

    def single(self, entry: _Entry) -> int:
        """The first value of a tag that should have one."""
        code = _INTEGERS.get(entry.type)
        if code is None or entry.number < 1:
            raise ImageError(f"TIFF tag {entry.tag} does not hold a whole number")
        value = self.read(code, entry.values_at)
        if value >= 1 << 32:
            raise ImageError(f"TIFF tag {entry.tag} holds {value}, which no picture has")
        return value

    def bytes_of(self, entry: _Entry | None) -> bytes:
        """The values of a tag that holds bytes; empty where they are too many or truncated."""
        if entry is None or entry.type not in (1, 7) or entry.number > MAX_PROFILE:
            return b""
        return self.data[entry.values_at : entry.values_at + entry.number]

    def kept(self, entry: _Entry) -> bytes:
        """The entry as bytes for the new directory."""
        if entry.tag in _SINGLE_TAGS:
            value = self.pack("I", self.single(entry)).ljust(self.inline, b"\0")
            return self.pack("HH" + self.offset, entry.tag, 4, 1) + value
        if entry.values_at + _TYPE_SIZES.get(entry.type, 1) * entry.number > len(self.data):
            raise ImageError(
                f"the picture is cut short: TIFF tag {entry.tag} points behind the end of the file"
            )
        return self.pack("HH" + self.offset, entry.tag, entry.type, entry.number) + entry.field

    def page_at(self, position: int, number: int) -> int:
        """The position of the directory of page `number`, counted from 1; `position`: that of the first
        page."""
        seen: set[int] = set()
        while position and position not in seen and len(seen) < number - 1:
            seen.add(position)
            position = self.read(self.offset, self._next(position))
        if not position or position in seen:
            raise ImageError(
                f"the TIFF picture has {len(seen)} page{'s' * (len(seen) != 1)}; page must be from 1 to "
                f"{len(seen)}, got {number}"
            )
        return position

    def _next(self, position: int) -> int:
        """The position of the field that holds the offset of the next directory."""
        count = self.read(self.count, position)
        return position + struct.calcsize("<" + self.count) + (4 + 2 * self.inline) * count

    def count_pages(self, position: int, max_pages: int) -> int:
        """The number of pages, counted up to `max_pages` + 1; a truncated directory is the last."""
        seen: set[int] = set()
        while position and position not in seen and len(seen) <= max_pages:
            seen.add(position)
            try:
                position = self.read(self.offset, self._next(position))
            except struct.error:
                break
        return len(seen)

    def with_directory(self, entries: list[bytes]) -> bytes:
        """The file with a new directory appended, to which its header points."""
        padding = b"\0" * (len(self.data) % 2)  # directories begin at even offsets
        at = self.pack(self.offset, len(self.data) + len(padding))
        head = self.data[: 8 if self.big else 4] + at
        count, end = self.pack(self.count, len(entries)), b"\0" * self.inline  # no next page
        return b"".join([head, self.data[len(head) :], padding, count, *entries, end])


def read_tiff(data: bytes, max_frames: int, number: int = 1) -> Header:
    """The header of page `number` of a TIFF file, counted from 1; its `data` is the file with that page's
    pixel tags only.

    Raises `ImageError` for a directory that is broken, `struct.error` for one that is truncated,
    `ImageTooLarge` for too many strips or tiles, or too large ones.
    """
    file = _File(data)
    first = file.read(file.offset, 8 if file.big else 4)
    pages = file.count_pages(first, max_frames)  # first, since this bounds the walk to the page
    place = first if number == 1 or pages > max_frames else file.page_at(first, number)
    entries = {entry.tag: entry for entry in file.entries(place)}
    if _WIDTH not in entries or _HEIGHT not in entries:
        raise ImageError("the TIFF file does not say its size")
    kept = [file.kept(entries[tag]) for tag in sorted(entries) if tag in _SINGLE_TAGS | _LIST_TAGS]
    width, height = file.single(entries[_WIDTH]), file.single(entries[_HEIGHT])
    layout = _Layout(file, entries, width, height)
    return Header(
        "TIFF",
        width,
        height,
        pages,
        file.orientation(entries),
        file.with_directory(kept),
        layout.rgb,
        layout.part_bytes,
        profile=file.bytes_of(entries.get(_PROFILE)),
        stored=layout.words,
    )


class _Layout:
    """How a page's pixels are stored, checked. `part_bytes`: bytes of a decompressed strip or tile. `rgb`:
    whether Pillow decodes to RGB without a copy. `words`: a description for error messages."""

    def __init__(self, file: _File, entries: Mapping[int, _Entry], width: int, height: int) -> None:
        def value(tag: int, default: int) -> int:
            return file.single(entries[tag]) if tag in entries else default

        compression, samples, bits = value(_COMPRESSION, 1), value(_SAMPLES, 1), value(_BITS, 1)
        if compression not in COMPRESSIONS:
            raise ImageError(
                f"the TIFF file's pixels are packed with compression {compression}, which is not read; "
                f"those that are: {', '.join(dict.fromkeys(COMPRESSIONS.values()))}"
            )
        kind, colours = _FORMATS.get(value(_SAMPLE_FORMAT, 1), ""), value(_PHOTOMETRIC, 0)
        self.words = (
            f"{samples} {kind}sample{'s' * (samples != 1)} of {bits} bits a pixel (photometric {colours})"
        )
        if not (1 <= samples <= _MAX_SAMPLES and 1 <= bits <= _MAX_BITS):
            raise ImageError(f"the TIFF picture has {self.words}, which is not read")
        self.rgb = (colours, samples, bits, value(_PLANES, 1)) == (_RGB, 3, 8, 1)
        tiled = _TILE_OFFSETS in entries
        offsets = entries.get(_TILE_OFFSETS if tiled else _OFFSETS)
        if offsets is not None and offsets.number > _MAX_PARTS:
            raise ImageTooLarge(
                f"the TIFF file has {offsets.number} {'tiles' if tiled else 'strips'}; "
                f"up to {_MAX_PARTS} are read"
            )
        if tiled:
            part_width, part_height = value(_TILE_WIDTH, width), value(_TILE_HEIGHT, height)
        else:
            part_width, part_height = width, min(value(_STRIP_ROWS, height), height)
        if tiled and part_width * part_height > _MAX_PADDING * max(width * height, _SMALL_TILE):
            raise ImageTooLarge(
                f"the TIFF file's tiles are of {part_width}x{part_height} pixels, "
                f"the picture of {width}x{height}"
            )
        self.part_bytes = part_width * part_height * samples * -(-bits // 8)


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) in an EXIF block; 1, "as stored", where it is broken or missing."""
    try:
        file = _File(exif)
        for entry in file.entries(file.read("I", 4)):
            if entry.tag == _ORIENTATION:  # the rest of the directory may be broken
                return file.orientation({_ORIENTATION: entry})
    except (struct.error, ImageError):
        pass
    return 1
