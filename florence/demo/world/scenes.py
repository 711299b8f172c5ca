"""Makes random scenes: things, their positions, and the background. Seeded and without side effects.

Knows nothing about pixels (see `drawing`) or task texts (see `ground_truth`). All coordinates are pixels of
the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

import numpy as np

from florence.demo.world.hard_scenes import CUT_SHARE, Camera, across_the_edge, clip
from florence.demo.world.shapes import (
    RING_HOLE,
    TURN,
    Points,
    answer_polygon,
    from_topmost,
    turned,
    unit_outline,
)  # fmt: skip
from florence.demo.world.typeface import FACES, Typeface
from florence.demo.world.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, TONES, WORD, WORDS, Rgb
from florence.export.geometry import Box, area, meet

MAX_THINGS: Final = 6  # things of usual size
MAX_CROWDED: Final = 40  # things of smaller scale
MAX_OVERLAP: Final = 0.12  # largest overlap, as a share of the smaller of two boxes
_HARD_SCALE: Final = (0.72, 1.0)  # of small things and words: a shrunk large thing is not "large"
LEFT_GAP: Final = 0.05  # of the width, between the left edges of two things: makes the order clear
_BORDER: Final = 0.02
_CONTRAST: Final = 95.0  # least distance in RGB between a thing and its background
_TRIES: Final = 60


class Split(IntEnum):
    """The stream of random numbers that a scene comes from; streams share no scene."""

    TRAIN = 1
    HELD_OUT = 2
    SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on scenes: number of things, share of scenes with words, square root of the picture's area in
    pixels (`side`).

    `scale`: size of things and gaps relative to the usual; below 1 it makes room for a crowd, with one more
    word for every six things. `hard`: smaller things, some cut by the picture's edge, with a poor camera.
    """

    things: tuple[int, int] = (1, 4)
    word_share: float = 0.45
    side: tuple[int, int] = (160, 320)
    aspect: float = 1.9  # most of longer side / shorter side
    scale: float = 1.0
    hard: bool = False


@dataclass(frozen=True, eq=False)
class Thing:
    """One thing: a shape, or a printed word (then `text` and `face` are set and `size` is empty).

    `outline` [N, 2]: vertices as drawn; for a word the four corners, clockwise from where reading starts.
    `cut_polygon` [N, 2]: the part of the polygon inside the picture, for a thing cut by its edge.
    """

    shape: str
    colour: str
    size: str
    text: str
    rgb: Rgb
    turn: float  # degrees clockwise
    outline: Points = field(repr=False)
    face: str = ""
    font_size: int = 0
    cut_polygon: Points | None = field(default=None, repr=False)

    @property
    def box(self) -> Box:
        low, high = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def hole(self) -> Points:
        """The edge [N, 2] of a ring's hole."""
        centre: Points = np.array(self.centre)
        hole: Points = (self.outline - centre) * RING_HOLE + centre
        return hole

    @property
    def polygon(self) -> Points:
        """The outline [N, 2] as in answers; for a ring the outer edge."""
        if self.cut_polygon is not None:
            return self.cut_polygon
        return self.outline if self.text else answer_polygon(self.shape, self.outline)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture before it is drawn. `things` are ordered from left to right, `layers` (their indices) from
    back to front.

    `camera`: of a hard scene, else None.
    """

    width: int
    height: int
    tone: str
    texture: str
    base: Rgb
    things: tuple[Thing, ...]
    layers: tuple[int, ...]
    texture_seed: int
    jpeg_quality: int | None
    camera: Camera | None = None


def scene_rng(split: Split, seed: int, index: int) -> np.random.Generator:
    """The random generator of one scene: independent for each split, seed and index."""
    return np.random.default_rng([int(split), seed, index])


def make_scene(rng: np.random.Generator, typeface: Typeface, limits: Limits) -> Scene:
    """A random scene within the limits; it has fewer things than intended if there is no room for more."""
    area_side = rng.uniform(*limits.side)
    ratio = math.exp(rng.uniform(-1, 1) * math.log(limits.aspect))
    width, height = round(area_side * math.sqrt(ratio)), round(area_side / math.sqrt(ratio))
    tone = str(rng.choice(list(TONES)))
    base = background_colour(rng, tone)
    count = int(rng.integers(limits.things[0], limits.things[1] + 1))
    words = int(rng.random() < limits.word_share)
    words += int(words and count > 2 and rng.random() < 0.3)
    if count > MAX_THINGS:
        words += count // 6
    placed: list[Thing] = []
    for number in range(count):
        thing = _place(rng, typeface, (width, height), base, placed, limits, is_word=number < words)
        if thing is not None:
            placed.append(thing)
    order = sorted(range(len(placed)), key=lambda index: placed[index].box[0])
    layers = tuple(int(layer) for layer in rng.permutation(len(placed)))
    quality = int(rng.integers(55, 96)) if rng.random() < 0.6 else None
    texture, texture_seed = str(rng.choice(TEXTURES)), int(rng.integers(2**31))
    camera = Camera.draw(rng, math.sqrt(width * height)) if limits.hard else None
    things = tuple(placed[index] for index in order)
    return Scene(width, height, tone, texture, base, things, layers, texture_seed, quality, camera)


def background_colour(rng: np.random.Generator, tone: str) -> Rgb:
    """A colour of this tone."""
    grey = rng.uniform(*TONES[tone])
    red, green, blue = (int(np.clip(grey + shift, 0, 255)) for shift in rng.uniform(-22, 22, 3))
    return red, green, blue


def _place(
    rng: np.random.Generator,
    typeface: Typeface,
    size: tuple[int, int],
    base: Rgb,
    placed: list[Thing],
    limits: Limits,
    is_word: bool,
) -> Thing | None:
    """A new thing that is clear enough of the others, or None if no room was found."""
    for _ in range(_TRIES):
        thing = _word(rng, typeface, size, base, limits) if is_word else _shape(rng, size, base, limits)
        # If cut, a word is unreadable, a small thing unrecognisable, and a ring's hole has no centre.
        may_cut = limits.hard and thing.size == "large" and thing.shape != "ring"
        moved = (_cut if may_cut and rng.random() < CUT_SHARE else _moved)(rng, thing, size)
        if moved is not None and _fits(moved, size, placed, limits):
            return moved
    return None


def _fits(thing: Thing, size: tuple[int, int], placed: list[Thing], limits: Limits) -> bool:
    centre, gap = thing.centre[0] / size[0], LEFT_GAP * limits.scale
    if min(abs(centre - 1 / 3), abs(centre - 2 / 3)) < gap / 2:
        return False  # it must be clear whether a thing is at the left, in the middle or at the right
    for other in placed:
        alike = (thing.colour, thing.shape) == (other.colour, other.shape)
        if alike or (thing.text and thing.text == other.text):
            return False
        if abs(thing.box[0] - other.box[0]) < gap * size[0] or _overlap(thing.box, other.box) > MAX_OVERLAP:
            return False
    return True


def _overlap(a: Box, b: Box) -> float:
    """The common area, as a share of the smaller of two boxes."""
    return area(meet(a, b)) / min(area(a), area(b))


def _scale(rng: np.random.Generator, limits: Limits) -> float:
    """The size of a small thing or a word relative to the usual one."""
    return limits.scale * float(rng.uniform(*_HARD_SCALE)) if limits.hard else limits.scale


def _shape(rng: np.random.Generator, size: tuple[int, int], base: Rgb, limits: Limits) -> Thing:
    shape = str(rng.choice(SHAPES))
    size_name = str(rng.choice(list(SIZES)))
    scale = _scale(rng, limits) if size_name == "small" else limits.scale
    diameter = rng.uniform(*SIZES[size_name]) * scale * math.sqrt(size[0] * size[1])
    max_turn = TURN.get(shape, 180.0)
    turn = float(rng.uniform(-max_turn, max_turn))
    outline = turned(unit_outline(shape), turn)
    outline *= diameter / np.ptp(outline, axis=0).max()
    colour, rgb = colour_upon(rng, base)
    return Thing(shape, colour, size_name, "", rgb, turn, outline)


def _word(
    rng: np.random.Generator, typeface: Typeface, size: tuple[int, int], base: Rgb, limits: Limits
) -> Thing:
    text = str(rng.choice(WORDS))
    letters = rng.uniform(0.15, 0.23) * _scale(rng, limits) * math.sqrt(size[0] * size[1])
    font_size = max(12, round(letters))
    face = str(rng.choice(list(FACES)))
    wide, high = typeface.ink(text, face, font_size).size
    turn = float(rng.uniform(-14, 14)) if rng.random() < 0.5 else 0.0
    corners = np.array([(-wide, -high), (wide, -high), (wide, high), (-wide, high)]) / 2.0
    colour, rgb = colour_upon(rng, base)
    return Thing(WORD, colour, "", text, rgb, turn, turned(corners, turn), face, font_size)


def _moved(rng: np.random.Generator, thing: Thing, size: tuple[int, int]) -> Thing | None:
    """The thing at a random place completely inside the picture, or None if it is too large."""
    border = _BORDER * min(size)
    low = border - thing.outline.min(axis=0)
    high = np.array(size) - border - thing.outline.max(axis=0)
    if (high < low).any():
        return None
    return replace(thing, outline=thing.outline + rng.uniform(low, high))


def _cut(rng: np.random.Generator, thing: Thing, size: tuple[int, int]) -> Thing | None:
    """The thing at a random place where the picture's edge cuts it, or None if it is too large."""
    if (np.ptp(thing.outline, axis=0) > size).any():
        return None
    whole = across_the_edge(rng, thing.outline, size)
    polygon = from_topmost(clip(answer_polygon(thing.shape, whole), size))
    return replace(thing, outline=clip(whole, size), cut_polygon=polygon)


def colour_upon(rng: np.random.Generator, base: Rgb) -> tuple[str, Rgb]:
    """A colour's name, and a random tone of it that contrasts with the background."""
    while True:
        name = str(rng.choice(list(COLOURS)))
        tone = np.clip(np.array(COLOURS[name]) + rng.integers(-14, 15, 3), 0, 255)
        if float(np.linalg.norm(tone - np.array(base))) >= _CONTRAST:
            return name, (int(tone[0]), int(tone[1]), int(tone[2]))
