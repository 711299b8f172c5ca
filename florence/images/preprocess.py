"""Brings encoded pictures to the model's input size.

Normalisation happens on the model's device. Knows nothing about threads, processes or tensors, and needs
neither numpy nor torch, since reader processes import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from florence.errors import ImageTooLarge
from florence.images.decode import decode
from florence.images.header import Header
from florence.images.limits import ImageLimits
from florence.images.seen import ORIGINAL, View, to_srgb
from florence.images.tiles import Bounds


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A checkpoint's preprocessing of a picture.

    The picture is resized to `height` x `width` with Pillow's filter `resample`; then, on the model's device,
    multiplied by `rescale` (1/255), less `mean`, divided by `std`, both with one number for each channel (R,
    G, B).
    """

    height: int
    width: int
    resample: int
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class InputSize:
    """The model's input size, and how pictures are resized to it.

    `resample`: the number of Pillow's filter (3: bicubic with antialiasing); torch's bicubic differs from it
    by one level in places, and the checkpoints were trained with Pillow's. `fast_jpeg`: libjpeg decodes a
    JPEG at a half, a quarter or an eighth of its size where that is still at least the input size, which is
    faster and changes pixels.
    """

    height: int
    width: int
    resample: int
    fast_jpeg: bool = False

    def cut(self, picture: tuple[int, int], view: View) -> list[Bounds]:
        """The tiles of a picture with this width and height; one tile, the whole picture, if the view does
        not cut it. Raises `ImageError` as `Tiling.cut`."""
        if view.tiling is None:
            return [(0, 0, *picture)]
        return view.tiling.cut(picture, (self.width, self.height))


def resize(image: Image.Image, size: InputSize, part: Bounds | None = None) -> Image.Image:
    """Resize a picture in mode L, RGB or CMYK, or a part of it, to exactly the input size, whatever its
    aspect ratio. Pixels outside the part have no influence."""
    image = image if part is None else image.crop(part)
    return image.resize((size.width, size.height), Image.Resampling(size.resample))


def memory_to_read(header: Header, size: InputSize, limits: ImageLimits, view: View = ORIGINAL) -> int:
    """The memory that `read_tiles` takes, in bytes, including the pixels of all tiles. Raises `ImageTooLarge`
    for too much memory, `ImageError` for too many tiles."""
    first_pass = 4 * size.width * max(header.width, header.height)  # first pass of the resize
    pixels = 0
    if view.tiling is not None:
        turned = header.orientation > 4  # sideways
        upright = (header.height, header.width) if turned else (header.width, header.height)
        parts = size.cut(upright, view)
        left, top, right, bottom = parts[0]
        pixels = 3 * size.width * size.height * len(parts) + 4 * (right - left) * (bottom - top)
    needed = header.decode_bytes(original=view.original) + first_pass + pixels
    if needed > limits.decode_bytes:
        raise ImageTooLarge(
            f"decoding the picture ({header.format}, {header.width}x{header.height}) takes {needed} bytes of "
            f"memory; FLORENCE_DECODE_MEMORY_BYTES allows {limits.decode_bytes}"
        )
    return needed


def read_tiles(
    header: Header, size: InputSize, view: View = ORIGINAL
) -> tuple[tuple[int, int], Iterator[Image.Image]]:
    """The picture's width and height (after orientation), and its tiles (`InputSize.cut`) at the input size,
    RGB.

    The picture is decoded once, before this returns. This and the iterator raise `ImageError` and
    `ImageTooLarge`.
    """
    fast = size.fast_jpeg and view.tiling is None
    image, original = decode(header, view, (size.width, size.height) if fast else None)
    parts = [None] if view.tiling is None else size.cut(original, view)
    resized = (resize(image, size, part) for part in parts)
    return original, (each if view.original else to_srgb(each, header.profile) for each in resized)
