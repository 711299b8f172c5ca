"""Reads picture headers: format, size, frames, orientation, and the part of the file that is decoded.

Everything is read without decoding a pixel, so limits can be checked first. For PNG, JPEG and GIF
`Header.data` holds only what the decoder needs: no EXIF, text, colour profiles, thumbnails or later frames; a
TIFF gets a directory that names nothing else. So the decoder never parses metadata: broken metadata can't
fail a picture (Pillow refuses a PNG for one wrong bit in a text chunk), compressed text can't fill the
memory, Pillow emits no warnings, in any thread, and a file can't have a second size besides the one that was
checked. WebP, BMP, AVIF and HEIF files are not changed: Pillow does not parse their metadata, which take no
more memory than in the file.

Knows nothing about Pillow, limits or models. TIFF and HEIF have modules of their own.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from florence.errors import ImageError, ImageTooLarge
from florence.images.header import MAX_PROFILE, Header
from florence.images.heif import read_heif
from florence.images.tiff import exif_orientation, read_tiff

FORMATS: Final = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
SUFFIXES: Final = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
FIRST_BYTES: Final = 16
"""How many bytes are enough to recognise the format."""
# Far more blocks than any encoder writes; walking them costs up to 1 µs each.
MAX_BLOCKS = 500_000
# Progressive files have about 10 scans.
MAX_JPEG_SCANS = 100
_FRAME_COST: Final = 4
"""`Header.pass_cost` where frames are composed; higher for PNG, which Pillow composes in several steps."""
_PNG_FRAME_COST: Final = 8
_RLE: Final = (1, 2)  # BMP's compressions of 8 and 4 bits
_RLE_COST: Final = 64
"""The same for run-length encoding, which Pillow decodes in Python: 85 ns a pixel."""
_MAX_RLE_BYTES: Final = 4 * 2**20  # 155 ns a byte


def read_header(data: bytes, max_frames: int, number: int = 1) -> Header:
    """The header of a file in one of `FORMATS`, recognised by its bytes.

    `number`: the frame or page to decode, from 1; whether it exists is checked here for TIFF only. Frames are
    counted up to `max_frames` + 1. Raises `ImageError` for other formats and for broken headers.
    """
    for name, first_bytes, read in _FORMATS:
        if first_bytes.match(data):
            try:
                return read(data, max_frames, number)
            except (struct.error, IndexError) as error:
                raise ImageError(f"the picture is cut short: its {name} header is not complete") from error
    raise ImageError(
        f"this is not a picture in a known format (its first bytes are {data[:8].hex(' ')}): send a file in "
        f"{FORMATS}"
    )


def format_of(first_bytes: bytes) -> str | None:
    """The format of a file that begins with these `FIRST_BYTES` bytes ("HEIF" for AVIF too); None if it is in
    none of `FORMATS`."""
    return next((name for name, pattern, _ in _FORMATS if pattern.match(first_bytes)), None)


def is_picture(first_bytes: bytes) -> bool:
    """Whether a file that begins with these `FIRST_BYTES` bytes is in one of `FORMATS`."""
    return format_of(first_bytes) is not None


def _png(data: bytes, max_frames: int, number: int) -> Header:
    kept = [data[:8]]
    width, height = struct.unpack_from(">II", data, 16)
    frames, orientation, profile = 0, 1, b""
    still: bool | None = None  # whether IDAT comes before the animation's frames and is not one of them
    animation = (b"acTL", b"fcTL", b"fdAT") if number > 1 else ()
    for index, (kind, start, end) in enumerate(_chunks(data, 8, ">I4s", trailer=4)):
        if (index == 0) != (kind == b"IHDR"):
            raise ImageError("the PNG file must begin with its one IHDR chunk")
        if still is None and kind in (b"fcTL", b"IDAT"):
            still = kind == b"IDAT"
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", *animation):
            kept.append(data[start:end])
        elif kind == b"tRNS" and _is_whole(data[start + 4 : end]):
            kept.append(data[start:end])  # Pillow would refuse the picture for a damaged chunk
        if kind == b"acTL":
            frames = min(struct.unpack_from(">I", data, start + 8)[0], max_frames + 1)
        elif kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : end - 4])
        elif kind == b"iCCP":
            profile = _unpacked_profile(data[start + 8 : end - 4])
        if kind == b"IEND":
            break
    rgb = number == 1 and data[24:26] == b"\x08\x02"  # eight bits, truecolour
    frames = frames + bool(still) if frames else 1
    return Header(
        "PNG", width, height, frames, orientation, b"".join(kept), rgb, passes=number,
        pass_cost=_PNG_FRAME_COST if number > 1 else 1, profile=profile, frame=number,
    )  # fmt: skip


def _is_whole(chunk: bytes) -> bool:
    """Whether a chunk's CRC is right."""
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _unpacked_profile(body: bytes) -> bytes:
    """The profile in an iCCP chunk, which has a name, a zero, the method 0, and the profile compressed by
    zlib."""
    packed = body.partition(b"\0")[2][1:]
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(packed, MAX_PROFILE)
    except zlib.error:
        return b""
    return profile if stream.eof else b""


def _chunks(data: bytes, position: int, layout: str, *, trailer: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk. A chunk has a head of 8 bytes in this `layout` (struct), a body, and
    `trailer` bytes."""
    for _ in range(MAX_BLOCKS):
        if position + 8 > len(data):
            return
        first, second = struct.unpack_from(layout, data, position)
        kind, length = (second, first) if isinstance(second, bytes) else (first, second)
        end = position + 8 + length + trailer
        yield kind, position, end
        position = end if trailer else end + end % 2  # RIFF pads its chunks to even lengths
    raise ImageError(f"the picture is made of more than {MAX_BLOCKS} blocks")


def _jpeg(data: bytes, max_frames: int, number: int) -> Header:
    kept, orientation = [data[:2]], 0
    profile: dict[int, bytes] = {}  # parts by number
    size: tuple[int, int] | None = None
    components, buffered = 0, False
    scans = 0  # where the first scan begins
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = orientation or exif_orientation(data[start + 10 : end])
        if marker == 0xE2 and data[start + 4 : start + 16] == b"ICC_PROFILE\0":
            profile[data[start + 16]] = data[start + 18 : end]
        if marker in _JPEG_FRAMES:
            if size is not None:
                raise ImageError("the JPEG file has more than one frame header")
            height, width, components = struct.unpack_from(">HHB", data, start + 5)
            size = width, height
            buffered = marker in _PROGRESSIVE
        if marker in (0xE0, 0xEE) or not 0xE0 <= marker <= 0xFE:  # of metadata, only JFIF's and Adobe's
            kept.append(data[start:end])
        scans = end
    if size is None:
        raise ImageError("the JPEG file has no frame header before its pixels")
    stop = data.find(b"\xff\xd9", scans)
    pixels = data[scans : stop + 2 if stop >= 0 else len(data)]
    passes = pixels.count(b"\xff\xda")
    if passes > MAX_JPEG_SCANS:
        raise ImageError(f"the JPEG file has more than {MAX_JPEG_SCANS} scans")
    # In these cases libjpeg keeps all coefficients, two bytes each.
    coefficients = 2 * components * size[0] * size[1] if buffered or passes > 1 else 0
    kept.append(pixels)
    return Header(
        "JPEG", *size, 1, orientation or 1, b"".join(kept), components == 3, coefficients, passes,
        profile=_checked_profile(b"".join(part for _, part in sorted(profile.items()))),
    )  # fmt: skip


def _checked_profile(profile: bytes) -> bytes:
    """The profile; empty where it is too large."""
    return profile if len(profile) <= MAX_PROFILE else b""


# SOF0 to SOF15; C4, C8 and CC are tables.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment before the first scan."""
    position = 2
    for _ in range(MAX_BLOCKS):
        position = data.find(b"\xff", position)
        if position < 0:
            break
        marker = data[position + 1]
        if marker == 0xDA:
            return
        # Fill bytes and markers without a body.
        if marker in (0x00, 0x01, 0xD8, 0xFF) or 0xD0 <= marker <= 0xD7:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        yield marker, position, end
        position = end
    raise ImageError("the picture is cut short: its JPEG data end before the first pixel")


def _gif(data: bytes, max_frames: int, number: int) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    screen = 13 + _palette_bytes(flags)
    kept, frames = [data[:screen]], 0
    for kind, start, end in _gif_blocks(data, screen):
        if kind == 0x2C:
            frames += 1
            if frames <= number:
                left, top, frame_width, frame_height = struct.unpack_from("<4H", data, start + 1)
                width, height = max(width, left + frame_width), max(height, top + frame_height)
                kept.append(data[start:end])
            if frames > max_frames:
                break
        elif kind == 0xF9 and frames < number:
            kept.append(data[start:end])
    if not frames:
        raise ImageError("the GIF file holds no picture")
    return Header(
        "GIF", width, height, frames, 1, b"".join([*kept, b";"]), passes=number,
        pass_cost=_FRAME_COST if number > 1 else 1, frame=number,
    )  # fmt: skip


def _gif_blocks(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """(kind, start, end) of each picture (0x2C) and extension (its label)."""
    budget = MAX_BLOCKS
    while position + 10 < len(data) and data[position] != 0x3B:
        start, kind = position, data[position]
        if kind == 0x2C:
            position += 10 + _palette_bytes(data[position + 9]) + 1
        elif kind == 0x21:
            kind = data[position + 1]
            position += 2
        else:  # some encoders leave stray bytes between blocks
            position += 1
            continue
        while position < len(data) and data[position]:
            position += 1 + data[position]
            budget -= 1
            if not budget:
                raise ImageError(f"the picture is made of more than {MAX_BLOCKS} blocks")
        position += 1
        yield kind, start, position


def _palette_bytes(flags: int) -> int:
    """Bytes of the palette announced by a GIF's flags: 3 for each of 2 to 256 colours."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes, max_frames: int, number: int) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ImageError(f"the WebP file begins with an unknown chunk {kind!r}")
    frames, orientation, profile = 0, 1, b""
    for kind, start, end in _chunks(data, 12, "<4sI"):
        if kind == b"ANMF":
            frames = min(frames + 1, max_frames + 1)
        elif kind == b"EXIF":
            orientation = exif_orientation(data[start + 8 : end].removeprefix(b"Exif\0\0"))
        elif kind == b"ICCP":
            profile = _checked_profile(data[start + 8 : end])
    return Header(
        "WEBP", width, height, max(frames, 1), orientation, data, passes=number,
        pass_cost=_FRAME_COST if number > 1 else 1, profile=profile, frame=number,
    )  # fmt: skip


def _bmp(data: bytes, max_frames: int, number: int) -> Header:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height, 1, 1, data)
    width, height = struct.unpack_from("<ii", data, 18)  # a negative height: the top row comes first
    packed = struct.unpack_from("<I", data, 30)[0] in _RLE
    if packed and len(data) > _MAX_RLE_BYTES:
        raise ImageTooLarge(
            f"the BMP picture has {len(data)} bytes and is run-length encoded; up to {_MAX_RLE_BYTES} are "
            "allowed with that encoding: save it without compression"
        )
    return Header("BMP", abs(width), abs(height), 1, 1, data, pass_cost=_RLE_COST if packed else 1)


_FORMATS: tuple[tuple[str, re.Pattern[bytes], Callable[[bytes, int, int], Header]], ...] = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    ("JPEG", re.compile(rb"\xff\xd8\xff"), _jpeg),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    ("GIF", re.compile(rb"GIF8[79]a"), _gif),
    ("BMP", re.compile(rb"BM"), _bmp),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), read_tiff),
    ("HEIF", re.compile(rb"....ftyp(?:avi|hei|hev|mif1|msf1)", re.DOTALL), read_heif),
)
