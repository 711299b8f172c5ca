"""The lettering of the demo world: the typeface that Pillow carries, at any size.

Knows nothing about scenes. Holds the sizes and words it has drawn.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont


class Typeface:
    """Measures and draws words; one object serves one process."""

    def __init__(self) -> None:
        self._fonts: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}
        self._inks: dict[tuple[str, int], Image.Image] = {}

    def ink_size(self, text: str, size: int) -> tuple[int, int]:
        """Width and height in pixels of the drawn letters, without the space around them."""
        return self._ink(text, size).size

    def ink(self, text: str, size: int, turn: float) -> Image.Image:
        """The letters as a mask (mode L), turned clockwise by degrees; its centre is that of the letters."""
        mask = self._ink(text, size)
        return mask.rotate(-turn, Image.Resampling.BICUBIC, expand=True) if turn else mask

    def _ink(self, text: str, size: int) -> Image.Image:
        """The upright letters, cut to what is drawn: a font's own box holds its side bearings too."""
        mask = self._inks.get((text, size))
        if mask is None:
            font = self._font(size)
            left, top, right, bottom = font.getbbox(text)
            wide = Image.new("L", (round(right - left) + 2, round(bottom - top) + 2))
            ImageDraw.Draw(wide).text((1 - left, 1 - top), text, fill=255, font=font)
            mask = self._inks[(text, size)] = wide.crop(wide.getbbox())
        return mask

    def _font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        font = self._fonts.get(size)
        if font is None:
            font = self._fonts[size] = ImageFont.load_default(size)
        return font
