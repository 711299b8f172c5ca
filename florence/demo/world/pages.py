"""Random pages of small print: upright words in lines, small on a large picture.

Seeded and without side effects. Knows nothing about pixels (see `drawing`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from florence.demo.world.scenes import Scene, Thing, background_colour, colour_upon
from florence.demo.world.typeface import FACES, Typeface
from florence.demo.world.vocabulary import TEXTURES, TONES, WORD, WORDS, Rgb

COLUMNS: Final = 5
LINES: Final = 12
LETTERS: Final = (24, 40)
"""Range of the height of a word's letters, in pixels."""
MAX_WORD_WIDTH: Final = 192
"""Width of the widest word at the largest height, in pixels."""
_CELL: Final = (300, 150)  # width and height of a word's cell, in pixels
_OFF: Final = 6.0  # most pixels by which a word is above or below the middle of its line


def make_page(rng: np.random.Generator, typeface: Typeface) -> Scene:
    """A page of 60 words, which are its things, in reading order."""
    tone = str(rng.choice(list(TONES)))
    base = background_colour(rng, tone)
    cells = [(column * _CELL[0], line * _CELL[1]) for line in range(LINES) for column in range(COLUMNS)]
    words = tuple(_word(rng, typeface, base, *cell) for cell in cells)
    return Scene(
        width=COLUMNS * _CELL[0],
        height=LINES * _CELL[1],
        tone=tone,
        texture=str(rng.choice(TEXTURES)),
        base=base,
        things=words,
        layers=tuple(range(len(words))),
        texture_seed=int(rng.integers(2**31)),
        jpeg_quality=None,
    )


def _word(rng: np.random.Generator, typeface: Typeface, base: Rgb, left: float, top: float) -> Thing:
    """A word in the cell with this top left corner."""
    text, face = str(rng.choice(WORDS)), str(rng.choice(list(FACES)))
    letters = rng.uniform(*LETTERS)
    font_size = next(size for size in range(12, 99) if typeface.ink(text, face, size).height >= letters)
    wide, high = typeface.ink(text, face, font_size).size
    left += rng.uniform(0.05, 0.95) * (_CELL[0] - wide)
    top += (_CELL[1] - high) / 2 + rng.uniform(-_OFF, _OFF)
    right, bottom = left + wide, top + high
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    colour, rgb = colour_upon(rng, base)
    return Thing(WORD, colour, "", text, rgb, 0.0, corners, face, font_size)
