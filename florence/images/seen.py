"""A picture as a viewer shows it: every mode, transparency and colour profile that Pillow reads, as sRGB.

The original's processor only calls `convert("RGB")`: it drops alpha, cuts values of 16 bits off at 255 and
ignores colour profiles. `View.original` asks for that, with which the original's answers are equal bit for
bit. An opaque picture of 8 bits in RGB, grey or palette colours without a profile is the same in both.

Knows Pillow's pictures; knows nothing about files, limits and sizes.
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
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _SIGNED = 0, 2


@dataclass(frozen=True, slots=True)
class View:
    """Which picture of a file is taken, and how it becomes RGB: as it is seen, or by the original's
    `convert("RGB")`.

    `background`: R, G and B of what is seen through transparency. `frame`, of an animation, and `page`, of a
    document: counted from 1; None: the first. `tiling`: how the picture is cut; None: it is not.
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
    """How the file of a picture in one colour stores a value, which Pillow's modes don't tell. bits, signed:
    of integers; inverted: 0 is white where Pillow takes it for black."""

    bits: int = 16
    signed: bool = False
    inverted: bool = False


def flatten(image: Image.Image, background: tuple[int, int, int], values: Values) -> Image.Image:
    """An opaque picture of 8 bits in mode L, RGB or CMYK, in the colours of its own profile.

    Integers of more than 8 bits are taken by the full range of their type; floats by 0 to 1 if all are in it,
    else from their lowest to their highest. `values`: `values_of` the picture before it was loaded.
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
    """A picture in mode L, RGB or CMYK as RGB. A profile that is broken or of another mode is ignored."""
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
    """Whether a JPEG's inks lack Adobe's mark: Pillow takes all as inverted, as Adobe writes them."""
    return image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info


def values_of(image: Image.Image) -> Values:
    """Of an opened picture. Once it is loaded Pillow has forgotten it, but for a TIFF, whose tags stay."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if _BITS in tags:
        (bits, *_), (kind, *_) = tags[_BITS], tags.get(_SAMPLE_FORMAT, (1,))
        plain = image.mode in ("1", "L")  # which Pillow inverts itself
        return Values(bits, kind == _SIGNED, not plain and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""  # a plain tuple before Pillow 11
    first = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
    found = _DEPTH.fullmatch(first) if isinstance(first, str) else None
    return Values(int(found[1]), "S" in found[2]) if found else Values()


def orientation_of(image: Image.Image) -> int:
    """EXIF's, of an opened picture; 1 where it is broken or silent."""
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
    if _wraps(image, values):  # Pillow takes the upper half for negative numbers
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
    """In mode L: values from black's to white's, rounded; what lies beyond is cut off."""
    factor = 255 / (white - black)
    return image.point(_scale(factor, black * factor)).convert("L")


def _wraps(image: Image.Image, values: Values) -> bool:
    return image.mode == "I" and values.bits == 32 and not values.signed


def _scale(factor: float, zero: float) -> Callable[[float], float]:
    """`value` * factor - zero, rounded when it is cut to a whole number."""
    return lambda value: value * factor + (0.5 - zero)


def _range(image: Image.Image, values: Values) -> tuple[float, float]:
    if image.mode == "F":
        extrema: Any = image.getextrema()
        lowest, highest = extrema
        mean: Any = image.reduce(image.size).getpixel((0, 0))  # what is not finite stays so in it
        if not math.isfinite(mean) or not math.isfinite(highest - lowest):
            raise ValueError("its values are not finite, or too far apart")
        if 0 <= lowest <= highest <= 1:
            return 0.0, 1.0
        return lowest, highest if highest > lowest else lowest + 1
    half = 2.0 ** (values.bits - 1)
    return (-half, half - 1) if values.signed else (0.0, 2 * half - 1)
