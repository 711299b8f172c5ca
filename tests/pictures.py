"""Small pictures, drawn and encoded, for the tests of `florence.images.decode`."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image

# The modes that Pillow can write in each format.
STORABLE = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["1", "L", "RGB", "CMYK", "YCbCr"],
    "WEBP": ["L", "LA", "P", "RGB", "RGBA"],
    "GIF": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"],
}
FORMATS = list(STORABLE)
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"]


def drawn(width: int = 37, height: int = 23, mode: str = "RGB", frame: int = 0) -> Image.Image:
    """A picture whose corners and frames all differ."""
    y, x = np.mgrid[:height, :width]
    blue = (x + y + 60 * frame) % 256
    pixels = np.stack([x * 255 // width, y * 255 // height, blue], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "LA":
        return Image.merge("LA", image.split()[:2])
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode == "I;16":
        return Image.fromarray(pixels[..., 2].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return image.convert("L").convert(mode)
    return image.convert(mode)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The picture as a file of this format."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pillows(data: bytes) -> Image.Image:
    """The picture that Pillow alone reads from a file, as RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data)).convert("RGB")


def digest(image: Image.Image) -> str:
    """The SHA-256 of the picture's pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def same(left: Image.Image, right: Image.Image) -> bool:
    """True if both pictures have the same mode, size and pixels."""
    return left.mode == right.mode and left.size == right.size and left.tobytes() == right.tobytes()


def header_only(format: str, width: int, height: int) -> bytes:
    """A file whose header states this size, with hardly any pixels."""
    data = bytearray(saved(drawn(16, 16), format))
    if format == "PNG":
        body = b"IHDR" + struct.pack(">II", width, height) + bytes(data[24:29])
        data[12:33] = body + struct.pack(">I", zlib.crc32(body))
    elif format == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", width, -height)
    elif format == "WEBP":
        assert data[12:16] == b"VP8 "
        data[26:30] = struct.pack("<HH", width, height)
    else:
        value = struct.pack("<HHII", 256, 4, 1, width), struct.pack("<HHII", 257, 4, 1, height)
        at = struct.unpack_from("<I", data, 4)[0] + 2
        data[at : at + 24] = b"".join(value)
    return bytes(data)


def tiff_of(values: np.ndarray[Any, Any], photometric: int = 1, bits: int = 0, data: bytes = b"") -> bytes:
    """A TIFF that stores these values unchanged, [height, width] or [height, width, samples], for types and
    colours that Pillow reads but can't write. bits, data: of packed values."""
    height, width, samples = (*values.shape, 1)[:3]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = data or values.astype(values.dtype.newbyteorder("<")).tobytes()
    after = 8 + len(data)
    lists = [struct.pack(f"<{samples}H", *samples * [one]) for one in (bits or 8 * values.itemsize, kind)]
    tags = {
        256: width,
        257: height,
        258: lists[0],
        259: 1,
        262: photometric,
        273: 8,
        277: samples,
        278: height,
    }
    tags |= {278: height, 279: len(data), 339: lists[1]}
    directory, behind = struct.pack("<H", len(tags)), b""
    for tag, value in tags.items():
        if isinstance(value, int):
            directory += struct.pack("<HHII", tag, 4, 1, value)
            continue
        if len(value) > 4:
            behind += value
            value = struct.pack("<I", after + 2 + 12 * len(tags) + 4 + len(behind) - len(value))
        directory += struct.pack("<HHI", tag, 3, samples) + value.ljust(4, b"\0")
    return struct.pack("<2sHI", b"II", 42, after) + data + directory + bytes(4) + behind
