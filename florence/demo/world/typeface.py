"""The demo world's typefaces: five faces at any size, read from the packages that ship them.

Knows nothing about scenes. Caches fonts and drawn words.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from florence.errors import MissingLibrary

PLAIN: Final = "plain"  # Pillow's own font
FACES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType({
    PLAIN: ("", ""),
    "serif": ("font_caladea", "Caladea-Regular.ttf"), "bold": ("font_caladea", "Caladea-Bold.ttf"),
    "round": ("font_fredoka_one", "FredokaOne-Regular.ttf"), "hand": ("font_intuitive", "Intuitive.ttf"),
})  # fmt: skip
"""Name of a face -> its package and file. At one size, capitals of all faces have the same height."""


class Typeface:
    """Measures and draws words; use one object in a process. Raises `MissingLibrary` without a face's
    package."""

    def __init__(self) -> None:
        self._files = {face: _read_face(*source) for face, source in FACES.items() if face != PLAIN}
        self._font = cache(self._read_font)
        self._ink = cache(self._draw_ink)

    def ink(self, text: str, face: str, size: int, turn: float = 0.0) -> Image.Image:
        """The letters as a mask (mode L), rotated clockwise by `turn` degrees about their centre. Without
        rotation the mask has exactly the letters' size, without space around them."""
        mask = self._ink(text, face, size)
        return mask.rotate(-turn, Image.Resampling.BICUBIC, expand=True) if turn else mask

    def _draw_ink(self, text: str, face: str, size: int) -> Image.Image:
        """The upright letters, cropped to the ink: a font's own box includes side bearings."""
        font = self._font(face, size)
        left, top, right, bottom = font.getbbox(text)
        wide = Image.new("L", (round(right - left) + 2, round(bottom - top) + 2))
        ImageDraw.Draw(wide).text((1 - left, 1 - top), text, fill=255, font=font)
        return wide.crop(wide.getbbox())

    def _read_font(self, face: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if face == PLAIN:
            return ImageFont.load_default(size)
        return ImageFont.truetype(io.BytesIO(self._files[face]), size)


def _read_face(package: str, file: str) -> bytes:
    try:
        return (resources.files(package) / "files" / file).read_bytes()
    except ModuleNotFoundError as missing:
        raise MissingLibrary("drawing the demo world", package.replace("_", "-"), "demo") from missing
