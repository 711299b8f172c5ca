"""What readers take and return, and a reader in the calling thread. Knows nothing about queues or
processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from florence.images.decode import as_picture, encoded, inspect, load_image
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize, memory_to_read, read_tiles, resize
from florence.images.seen import ORIGINAL, View
from florence.images.tiles import Bounds
from florence.readers.budget import DecodeBudget

PictureSource = Image.Image | bytes | str | Path | Callable[[], bytes]
"""A PIL picture, an encoded one's bytes, its path, or a function that returns its bytes, called at
reading."""


@dataclass(frozen=True, slots=True)
class ReadPicture:
    """A picture as the model takes it. `size`: width and height of the original; `pixels`: uint8 [height,
    width, 3] at the model's input size; `digest`: SHA-256 of the pixels.

    For a picture cut into tiles, `pixels` and `digest` are those of the first of `tiles`, each a
    `ReadPicture` itself; `corner`: left and top of a tile in the whole picture, in pixels of the original.
    """

    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    digest: bytes
    corner: tuple[int, int] = (0, 0)
    tiles: tuple[ReadPicture, ...] = ()

    @classmethod
    def of_tiles(
        cls, size: tuple[int, int], parts: Sequence[Bounds], read: Sequence[tuple[NDArray[np.uint8], bytes]]
    ) -> ReadPicture:
        """A picture of `size` (width, height), from the pixels and digest of each of its `parts`; a single
        part is the whole picture."""
        if len(parts) == 1:
            return cls(size, *read[0])
        tiles = tuple(
            cls((right - left, bottom - top), *each, corner=(left, top))
            for (left, top, right, bottom), each in zip(parts, read, strict=True)
        )
        return cls(size, *read[0], tiles=tiles)


class LocalReader:
    """Reads one picture at a time in the calling thread; decoders and filters release the interpreter's lock
    (GIL)."""

    def __init__(
        self, size: InputSize, limits: ImageLimits = DEFAULT_LIMITS, budget: DecodeBudget | None = None
    ) -> None:
        self._size, self._limits = size, limits
        self._budget = budget or DecodeBudget(limits.decode_bytes)

    def read(self, image: PictureSource, view: View = ORIGINAL) -> ReadPicture:
        """Read one picture. Raises ImageError, ImageTooLarge, and what a function as `image` raises."""
        if isinstance(image, Image.Image):
            picture = load_image(image, self._limits, view)
            original, parts = picture.size, self._size.cut(picture.size, view)
            read = [_pixels_of(resize(picture, self._size, part)) for part in parts]
        else:
            data = encoded(image() if callable(image) else image, self._limits)
            data, view = as_picture(data, self._limits, view)
            header = inspect(data, self._limits, view)
            with self._budget.hold(memory_to_read(header, self._size, self._limits, view)):
                original, tiles = read_tiles(header, self._size, view)
                read = [_pixels_of(tile) for tile in tiles]
            parts = self._size.cut(original, view)
        return ReadPicture.of_tiles(original, parts, read)

    def stop(self) -> None:
        """Does nothing: a thread can't be stopped."""

    def close(self) -> None:
        """Does nothing: a thread holds no resources."""


def _pixels_of(image: Image.Image) -> tuple[NDArray[np.uint8], bytes]:
    """uint8 [height, width, 3], and their digest."""
    pixels = np.array(image, dtype=np.uint8)
    return pixels, sha256(pixels.data).digest()
