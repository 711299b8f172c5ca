"""Draws a scene as a picture: background, things from back to front, a poor camera, JPEG noise.

The same scene gives the same pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from florence.demo.world.backgrounds import background
from florence.demo.world.ground_truth import Question, is_answerable, questions
from florence.demo.world.scenes import MAX_THINGS, Limits, Scene, Split, Thing, make_scene, scene_rng
from florence.demo.world.shapes import Points
from florence.demo.world.typeface import Typeface

_FINE: Final = 3  # shapes are drawn this many times larger and then reduced, for smooth edges


def random_scene(rng: np.random.Generator, typeface: Typeface, limits: Limits) -> Scene:
    """A random scene with at least one thing, of which every answer can be generated."""
    while not is_answerable(scene := make_scene(rng, typeface, limits)):
        pass
    return scene


def held_out(seed: int, count: int, limits: Limits) -> Iterator[tuple[Scene, Image.Image, list[Question]]]:
    """Scenes 0 to `count` - 1 of a held-out seed, with pictures and questions."""
    typeface = Typeface()
    # A crowded scene is seldom answerable.
    draw = random_scene if limits.things[1] <= MAX_THINGS else make_scene
    for index in range(count):
        rng = scene_rng(Split.HELD_OUT, seed, index)
        scene = draw(rng, typeface, limits)
        yield scene, draw_scene(scene, typeface), questions(scene, rng)


def draw_scene(scene: Scene, typeface: Typeface) -> Image.Image:
    """The picture of a scene, mode RGB."""
    rng = np.random.default_rng(scene.texture_seed)
    image = Image.fromarray(background(scene, rng).clip(0, 255).astype(np.uint8))
    for layer in scene.layers:
        thing = scene.things[layer]
        mask, corner = thing_mask(thing, typeface)
        image.paste(thing.rgb, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    if scene.camera is not None:
        image = scene.camera.take(image, rng)
    if scene.jpeg_quality is None:
        return image
    data = io.BytesIO()
    image.save(data, "JPEG", quality=scene.jpeg_quality)
    return Image.open(data).convert("RGB")


def thing_mask(thing: Thing, typeface: Typeface) -> tuple[Image.Image, tuple[int, int]]:
    """How much of each pixel the thing covers (mode L), and the position of the mask's top left pixel."""
    if thing.text:
        mask = typeface.ink(thing.text, thing.face, thing.font_size, thing.turn)
        x, y = thing.centre
        return mask, (round(x - mask.width / 2), round(y - mask.height / 2))
    x1, y1, x2, y2 = thing.box
    left, top = math.floor(x1), math.floor(y1)
    width, height = math.ceil(x2) - left, math.ceil(y2) - top
    fine = Image.new("L", (width * _FINE, height * _FINE))
    pen = ImageDraw.Draw(fine)
    pen.polygon(_corners(thing.outline, (left, top)), fill=255)
    if thing.shape == "ring":
        pen.polygon(_corners(thing.hole, (left, top)), fill=0)
    return fine.reduce(_FINE), (left, top)


def _corners(outline: Points, corner: tuple[int, int]) -> list[tuple[float, float]]:
    # PIL's polygons include their last row and column, so take off half a fine pixel at each side.
    return [(float(x), float(y)) for x, y in (outline - np.array(corner)) * _FINE - 0.5]
