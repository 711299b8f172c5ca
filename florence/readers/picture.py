"""What readers take and give, and reading in the calling thread. Knows nothing about queues or processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from florence.images.decode import as_picture, encoded, inspect, load_image
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize, memory_to_read, read_resized, resize
from florence.images.seen import ORIGINAL, View
from florence.readers.budget import DecodeBudget

PictureSource = Image.Image | bytes | str | Path | Callable[[], bytes]
"""A PIL picture, an encoded one's bytes, its path, or what gives its bytes when they are read."""


@dataclass(frozen=True, slots=True)
class ReadPicture:
    """A picture as the model takes it. `size`: width and height of the original; `pixels`: uint8 [height,
    width, 3] at the model's input size; `digest`: SHA-256 of the pixels."""

    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    digest: bytes


class LocalReader:
    """Reads one picture at a time in the calling thread; decoders and filters release the interpreter's
    lock."""

    def __init__(
        self, size: InputSize, limits: ImageLimits = DEFAULT_LIMITS, budget: DecodeBudget | None = None
    ) -> None:
        self._size, self._limits = size, limits
        self._budget = budget or DecodeBudget(limits.decode_bytes)

    def read(self, image: PictureSource, view: View = ORIGINAL) -> ReadPicture:
        """Raises ImageError, ImageTooLarge, and what a function that gives the bytes raises."""
        if isinstance(image, Image.Image):
            picture = load_image(image, self._limits, view)
            resized, original = resize(picture, self._size), picture.size
        else:
            data = encoded(image() if callable(image) else image, self._limits)
            data, view = as_picture(data, self._limits, view)
            header = inspect(data, self._limits, view)
            with self._budget.hold(memory_to_read(header, self._size, self._limits, view)):
                resized, original = read_resized(header, self._size, view)
        pixels = np.array(resized, dtype=np.uint8)
        return ReadPicture(original, pixels, sha256(pixels.data).digest())

    def stop(self) -> None:
        """A thread can't be stopped."""

    def close(self) -> None:
        """Nothing is held."""
