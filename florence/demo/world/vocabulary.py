"""What the demo world consists of: the names of shapes, colours, sizes, words and backgrounds.

Knows nothing about where a thing is or how it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

Rgb = tuple[int, int, int]

SHAPES: Final = (
    "circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "arrow", "diamond",
)  # fmt: skip
WORD: Final = "word"  # the category of printed text, beside the shapes

COLOURS: Final[Mapping[str, Rgb]] = MappingProxyType({
    "red": (214, 30, 36), "green": (28, 150, 52), "blue": (34, 70, 214), "yellow": (246, 220, 40),
    "orange": (250, 138, 20), "purple": (124, 40, 166), "pink": (250, 140, 190), "brown": (116, 70, 30),
    "cyan": (40, 206, 216), "black": (16, 16, 18), "white": (248, 248, 246), "gray": (128, 128, 130),
})  # fmt: skip

SIZES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {"small": (0.17, 0.24), "large": (0.33, 0.45)}
)
"""Range of a thing's diameter relative to the square root of the picture's area; the gap separates small from
large."""

TONES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType({"dark": (34, 84), "light": (172, 220)})
TEXTURES: Final = ("plain", "striped", "cloudy", "grainy", "hilly", "wooden", "blurry")

WORDS: Final = (
    "OPEN", "EXIT", "STOP", "SALE", "TAXI", "CAFE", "HOTEL", "BANK", "PARK", "SHOP",
    "MUSIC", "PIZZA", "BOOKS", "WATER", "NORTH", "SOUTH", "EAST", "WEST", "FIRE", "HELP",
    "SLOW", "FAST", "HOME", "LOVE", "TIME", "GAME", "NEWS", "FOOD", "RAIN", "SNOW",
    "WIND", "TREE", "ROAD", "SHIP", "KING", "QUEEN", "GOLD", "LION", "BEAR", "FISH",
)  # fmt: skip

NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
