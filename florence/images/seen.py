"""A picture as a viewer shows it: every mode, transparency and colour profile that Pillow reads, as sRGB.

The original's processor only calls `convert("RGB")`: it drops alpha, clips 16-bit values at 255 and ignores
colour profiles. `View.original` does the same, so that answers equal the original's bit for bit. For opaque
8-bit pictures in RGB, grey or palette colours without a profile there is no difference.

Knows Pillow's images; knows nothing about files, limits and sizes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image, ImageChops, ImageCms

from florence.images.tiff import exif_orientation
from florence.images.tiles import Tiling

_WHITE: Final = (255, 255, 255)
ALPHA: Final = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))
_KEPT: Final = frozenset(("L", "RGB", "CMYK"))
_DEPTH: Final = re.compile(r"I;(\d+)(.*)")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2


@dataclass(frozen=True, slots=True)
class View:
    """Which picture of a file is decoded, and how it becomes RGB: as a viewer shows it, or (`original`) by
    `convert("RGB")`.

    `background`: R, G and B behind transparent pixels. `frame` of an animation and `page` of a document:
    counted from 1; None: the first. `tiling`: how the picture is cut into tiles; None: it is not.
    """

    original: bool = False
    background: tuple[int, int, int] = _WHITE
    frame: int | None = None
    page: int | None = None
    tiling: Tiling | None = None


SEEN: Final = View()
ORIGINAL: Final = View(original=True)


@dataclass(frozen=True, slots=True)
class Values:
    """How a file with a single channel stores values; Pillow's modes don't say this. `bits`, `signed`: of
    integers; `inverted`: 0 is white, although Pillow reads it as black."""

    bits: int = 16
    signed: bool = False
    inverted: bool = False


def flatten(image: Image.Image, background: tuple[int, int, int], values: Values) -> Image.Image:
    """Convert to an opaque 8-bit picture in mode L, RGB or CMYK, in the colours of its own profile.

    Integers of more than 8 bits are scaled from the full range of their type; floats from 0 to 1 if all are
    in this range, else from their minimum to their maximum. `values`: `values_of` the picture before it was
    loaded.
    """
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return _flatten_deep(image, values, background)
    if image.mode == "L" and values.signed:
        return image.point([(value + 128) % 256 for value in range(256)])
    if inks_are_plain(image):
        return ImageChops.invert(image)
    if image.mode in ALPHA or "transparency" in image.info:
        layered = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, background)
        opaque.paste(layered, mask=layered.getchannel("A"))
        return opaque
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return _transformed(image, lab, srgb)
    return image if image.mode in _KEPT else image.convert("L" if image.mode == "1" else "RGB")


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert a picture in mode L, RGB or CMYK to sRGB. A profile that is broken or for another mode is
    ignored."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return _transformed(image, source, ImageCms.createProfile("sRGB"))
        except (ImageCms.PyCMSError, OSError):
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def _transformed(image: Image.Image, source: object, target: object) -> Image.Image:
    made = ImageCms.profileToProfile(image, source, target, outputMode="RGB")  # type: ignore[arg-type]
    if made is None:
        raise TypeError("lcms works in place only where it is asked to")
    return made


def inks_are_plain(image: Image.Image) -> bool:
    """Whether a CMYK JPEG lacks Adobe's marker: Pillow reads all as inverted, which is only Adobe's
    convention."""
    return image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info


def values_of(image: Image.Image) -> Values:
    """The `Values` of an opened picture. Call it before loading, since Pillow then drops this information
    (except for TIFF)."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if _BITS in tags:
        (bits, *_), (kind, *_) = tags[_BITS], tags.get(_SAMPLE_FORMAT, (1,))
        plain = image.mode in ("1", "L")  # Pillow inverts these itself
        return Values(bits, kind == _SIGNED, not plain and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""  # a plain tuple before Pillow 11
    first = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
    found = _DEPTH.fullmatch(first) if isinstance(first, str) else None
    return Values(int(found[1]), "S" in found[2]) if found else Values()


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture; 1 where it is broken or missing."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return exif_orientation(exif.removeprefix(b"Exif\0\0"))
    found = image.getexif().get(0x0112, 1) if image.format == "TIFF" else 1  # TIFF's own tag
    return found if isinstance(found, int) else 1


def _flatten_deep(image: Image.Image, values: Values, background: tuple[int, int, int]) -> Image.Image:
    black, white = _range(image, values)
    if values.inverted:
        black, white = white, black
    grey = _grey(image, black, white)
    if _wraps(image, values):  # Pillow reads the upper half as negative numbers
        upper = _grey(image, black - 2.0**32, white - 2.0**32)
        grey.paste(upper, mask=_grey(image.convert("F"), 0, -1))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey
    below = _grey(image, key, key - 1)
    shown = ImageChops.lighter(below, _grey(image, key, key + 1))
    opaque = Image.new("RGB", image.size, background)
    opaque.paste(grey.convert("RGB"), mask=shown)
    return opaque


def _grey(image: Image.Image, black: float, white: float) -> Image.Image:
    """Convert to mode L: values from `black` to `white` become 0 to 255, rounded and clipped."""
    factor = 255 / (white - black)
    return image.point(_scale(factor, black * factor)).convert("L")


def _wraps(image: Image.Image, values: Values) -> bool:
    return image.mode == "I" and values.bits == 32 and not values.signed


def _scale(factor: float, zero: float) -> Callable[[float], float]:
    """A function `value` * factor - zero, such that truncation of the result rounds."""
    return lambda value: value * factor + (0.5 - zero)


def _range(image: Image.Image, values: Values) -> tuple[float, float]:
    if image.mode == "F":
        extrema: Any = image.getextrema()
        lowest, highest = extrema
        mean: Any = image.reduce(image.size).getpixel((0, 0))  # not finite if any value is not
        if not math.isfinite(mean) or not math.isfinite(highest - lowest):
            raise ValueError("its values are not finite, or too far apart")
        if 0 <= lowest <= highest <= 1:
            return 0.0, 1.0
        return lowest, highest if highest > lowest else lowest + 1
    half = 2.0 ** (values.bits - 1)
    return (-half, half - 1) if values.signed else (0.0, 2 * half - 1)
