"""HEIF and AVIF files that encoders do not write: grids and overlays that use one small item many times."""

from __future__ import annotations

import io
import struct

from PIL import Image
from pillow_heif import from_pillow

Box = tuple[bytes, bytes]


def box(kind: bytes, body: bytes) -> bytes:
    """A box of ISO/IEC 14496-12."""
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, body: bytes, version: int = 0, flags: int = 0) -> bytes:
    """A box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags) + body)


def coded(form: str, width: int, height: int) -> tuple[bytes, bytes]:
    """The configuration box and the coded bytes of a plain picture."""
    picture, file = Image.new("RGB", (width, height), "grey"), io.BytesIO()
    if form == "AVIF":
        picture.save(file, "AVIF", quality=30, speed=10)
    else:
        from_pillow(picture).save(file, quality=30)
    data = file.getvalue()
    return _find(data, b"av1C" if form == "AVIF" else b"hvcC"), _find(data, b"mdat")[8:]


def _find(data: bytes, kind: bytes) -> bytes:
    """The first box of this kind."""
    at = data.index(kind) - 4
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]


def derived(
    form: str,
    kind: bytes,
    tile: tuple[int, int],
    size: tuple[int, int],
    told: bytes,
    uses: int,
    deep: int = 1,
) -> bytes:
    """A file whose picture is derived from one coded item, which it uses `uses` times.

    kind: `grid` or `iovl`; told: its data; size: the size in its `ispe`; deep: the
    number of derived items, each made from the one below.
    """
    config, data = coded(form, *tile)
    code, brand = (b"av01", b"avif") if form == "AVIF" else (b"hvc1", b"heic")
    items = [(1, code), *((2 + index, kind) for index in range(deep))]
    infos = b"".join(full(b"infe", struct.pack(">HH", n, 0) + k + b"\0", version=2) for n, k in items)
    refs = b"".join(
        box(b"dimg", struct.pack(">HH", 2 + index, uses) + struct.pack(">H", 1 + index) * uses)
        for index in range(deep)
    )
    sizes = [full(b"ispe", struct.pack(">II", *each)) for each in (tile, size)]
    links = struct.pack(">HBBB", 1, 2, 0x81, 2)
    links += b"".join(struct.pack(">HBB", 2 + index, 1, 3) for index in range(deep))
    properties = box(b"ipco", config + b"".join(sizes)) + full(b"ipma", struct.pack(">I", 1 + deep) + links)
    for _ in range(2):  # the first pass finds the offset of the coded bytes
        at = 0 if _ == 0 else len(head)  # noqa: F821
        places = struct.pack(">HHHIIHHII", 1, 0, 0, 0, 0, 0, 0, 0, 0)[:0]
        places += struct.pack(">HHHHII", 1, 0, 0, 1, at + 8, len(data))
        for index in range(deep):
            places += struct.pack(">HHHHII", 2 + index, 1, 0, 1, 0, len(told))
        iloc = full(b"iloc", struct.pack(">BBH", 0x44, 0, 1 + deep) + places, version=1)
        meta = full(
            b"meta",
            full(b"hdlr", bytes(4) + b"pict" + bytes(13))
            + full(b"pitm", struct.pack(">H", 1 + deep))
            + full(b"iinf", struct.pack(">H", 1 + deep) + infos)
            + full(b"iref", refs)
            + box(b"iprp", properties)
            + box(b"idat", told)
            + iloc,
        )
        head = box(b"ftyp", brand + bytes(4) + b"mif1" + brand) + meta
    return head + box(b"mdat", data)


def grid(
    form: str, tile: tuple[int, int], rows: int, columns: int, size: tuple[int, int] | None = None
) -> bytes:
    """A grid that repeats one tile."""
    whole = size or (tile[0] * columns, tile[1] * rows)
    told = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, *whole)
    return derived(form, b"grid", tile, whole, told, rows * columns)


def overlay(form: str, tile: tuple[int, int], uses: int, size: tuple[int, int]) -> bytes:
    """An overlay that puts one item on itself `uses` times, at the same position."""
    told = struct.pack(">BBHHHHII", 0, 1, 0, 0, 0, 65535, *size) + bytes(8 * uses)
    return derived(form, b"iovl", tile, size, told, uses)
