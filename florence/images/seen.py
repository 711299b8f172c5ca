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
_DEPTH: Final = re.compile(r"(?:I|F);(\d+)(.*)")


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


def flatten(image: Image.Image, background: tuple[int, int, int], depth: str) -> Image.Image:
    """An opaque picture of 8 bits in mode L, RGB or CMYK, in the colours of its own profile.

    Integers of more than 8 bits are taken by the full range of their type; floats by 0 to 1 if all are in it,
    else from their lowest to their highest. `depth`: its `raw_mode` before it was loaded.
    """
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return _flatten_deep(image, depth, background)
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


def raw_mode(image: Image.Image) -> str:
    """How an opened picture's file stores a value, such as "I;16S"; Pillow forgets it when it loads the
    pixels."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""  # a plain tuple before Pillow 11
    first = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
    return first if isinstance(first, str) else ""


def orientation_of(image: Image.Image) -> int:
    """EXIF's, of an opened picture; 1 where it is broken or silent."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return exif_orientation(exif.removeprefix(b"Exif\0\0"))
    found = image.getexif().get(0x0112, 1) if image.format == "TIFF" else 1  # TIFF's own tag
    return found if isinstance(found, int) else 1


def _flatten_deep(image: Image.Image, depth: str, background: tuple[int, int, int]) -> Image.Image:
    lowest, highest = _range(image, depth)
    factor = 255 / (highest - lowest)
    grey = image.point(_scale(factor, lowest * factor)).convert("L")
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey
    values = image.convert("I")
    above, below = (values.point(_scale(sign, sign * key)).convert("L") for sign in (1, -1))
    shown = ImageChops.lighter(above, below).point(lambda difference: 255 if difference else 0)
    opaque = Image.new("RGB", image.size, background)
    opaque.paste(grey.convert("RGB"), mask=shown)
    return opaque


def _scale(factor: float, zero: float) -> Callable[[float], float]:
    """`value` * factor - zero, rounded when it is cut to a whole number."""
    return lambda value: value * factor + (0.5 - zero)


def _range(image: Image.Image, depth: str) -> tuple[float, float]:
    if image.mode == "F":
        extrema: Any = image.getextrema()
        lowest, highest = extrema
        if not math.isfinite(highest - lowest):
            raise ValueError("its values are not finite, or too far apart")
        if 0 <= lowest <= highest <= 1:
            return 0.0, 1.0
        return lowest, highest if highest > lowest else lowest + 1
    found = _DEPTH.fullmatch(depth)
    bits, signed = (int(found[1]), "S" in found[2]) if found else (16, False)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
