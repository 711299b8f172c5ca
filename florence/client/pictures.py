"""From the pictures that callers have to the bytes that are uploaded.

Files and bytes are sent as they are: the service recognises their format and rotates them by their EXIF
orientation. PIL images and arrays are encoded without loss, so that the service reads the same pixels as from
their files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

from PIL import Image, ImageChops

from florence.errors import ImageError
from florence.images.files import read_file
from florence.images.seen import ALPHA, SEEN, Values, flatten, inks_are_plain, orientation_of, values_of

_FAST = 1  # zlib's level: half the time of the default, a few percent more bytes
_SENT = frozenset(("transparency", "icc_profile"))
_IN_TIFF = frozenset(("CMYK", "LAB", "F", "I"))
_KEPT = _IN_TIFF | {"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"}  # others are converted
_IN_FULL = (Values(), Values(32, signed=True))  # as the service reads modes I;16 and I


class PixelArray(Protocol):
    """What numpy's arrays, and others that offer their memory to numpy, have in common."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A picture that the service fetches itself, from a URL that it, not this program, must reach. The
    service refuses it unless its FLORENCE_IMAGE_HOSTS names the URL's host."""

    url: str


LocalPicture = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | PixelArray
"""A path, an encoded picture's bytes, a PIL image, or uint8 pixels [H, W], [H, W, 3] or [H, W, 4] (RGB,
RGBA). A text is always a path."""

Picture = LocalPicture | ImageUrl
"""A picture that this program has, or an `ImageUrl`."""


def picture_bytes(picture: LocalPicture) -> bytes:
    """The encoded picture. Raises ImageError where it can't be read or is of an unknown type.

    A file is open only while it is read.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | os.PathLike):
        return read_file(os.fspath(picture))
    if isinstance(picture, Image.Image):
        return _encoded(picture)
    if hasattr(picture, "__array_interface__"):
        return _encoded(_array_image(picture))
    raise ImageError(
        f"a picture is given as a path, bytes, a PIL image or an array of pixels, "
        f"not as {type(picture).__name__}"
    )


def picture_name(picture: Picture) -> str:
    """The picture's name in a message: its path, its URL, or its type."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    if isinstance(picture, ImageUrl):
        return picture.url
    return f"<{type(picture).__name__}>"


def _array_image(array: PixelArray) -> Image.Image:
    interface = array.__array_interface__
    shape, kind = tuple(interface["shape"]), interface["typestr"]
    layers = shape[2:] in ((), (3,), (4,)) and len(shape) >= 2
    if kind != "|u1" or not layers or 0 in shape:
        raise ImageError(
            f"an array of pixels must be uint8 [H, W], [H, W, 3] or [H, W, 4] in RGB, "
            f"got type {kind} and shape {list(shape)}"
        )
    return Image.fromarray(array)


def _encoded(image: Image.Image) -> bytes:
    """The encoded picture with what its look depends on: depth, transparency, colour profile, EXIF
    orientation. PNG, or TIFF in a mode that PNG does not have. Other metadata is not sent. Raises
    ImageError."""
    values = values_of(image)
    try:
        image.load()
        plain = image.copy()
        plain.info = {name: plain.info[name] for name in _SENT & plain.info.keys()}
        if inks_are_plain(image):
            plain = ImageChops.invert(plain)
        elif values not in _IN_FULL and (image.mode.startswith("I") or values.signed or values.inverted):
            plain = flatten(plain, SEEN.background, values)
        elif image.mode == "I" and values.bits == 16:
            plain = plain.convert("I;16")
        elif image.mode not in _KEPT:
            plain = plain.convert("RGBA" if image.mode in ALPHA else "RGB")
        exif = Image.Exif()
        exif[0x0112] = orientation_of(image)
        file = BytesIO()
        if plain.mode in _IN_TIFF:
            plain.save(file, "TIFF", compression="tiff_adobe_deflate", exif=exif)
        else:
            plain.save(file, "PNG", compress_level=_FAST, exif=exif)
    except MemoryError:
        raise
    except Exception as error:  # decoding happens here, and Pillow raises any type
        raise ImageError(f"the picture (mode {image.mode}) can't be read: {error}") from error
    return file.getvalue()
