"""Turns a scene into a picture: background, things from back to front, camera noise.

Knows nothing about tasks. The same scene gives the same pixels.
"""

from __future__ import annotations

import io
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from florence.demo.scenes import Scene, Thing
from florence.demo.shapes import RING_HOLE, Points
from florence.demo.typeface import Typeface

_FINE: Final = 3  # shapes are drawn this many times larger and reduced: smooth edges
Pixels = NDArray[np.float32]  # [H, W, 3]


def draw_scene(scene: Scene, typeface: Typeface) -> Image.Image:
    """The picture of a scene, mode RGB."""
    rng = np.random.default_rng(scene.texture_seed)
    image = Image.fromarray(_background(scene, rng).clip(0, 255).astype(np.uint8))
    for layer in scene.layers:
        thing = scene.things[layer]
        mask, corner = thing_mask(thing, typeface)
        image.paste(thing.rgb, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    if scene.jpeg_quality is None:
        return image
    data = io.BytesIO()
    image.save(data, "JPEG", quality=scene.jpeg_quality)
    return Image.open(data).convert("RGB")


def thing_mask(thing: Thing, typeface: Typeface) -> tuple[Image.Image, tuple[int, int]]:
    """How much of each pixel the thing covers (mode L), and where the mask's top left pixel lies."""
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
        centre = np.array(thing.centre)
        pen.polygon(_corners((thing.outline - centre) * RING_HOLE + centre, (left, top)), fill=0)
    return fine.reduce(_FINE), (left, top)


def _corners(outline: Points, corner: tuple[int, int]) -> list[tuple[float, float]]:
    # PIL's polygon covers its last row and column too: half a fine pixel less at each side.
    return [(float(x), float(y)) for x, y in (outline - np.array(corner)) * _FINE - 0.5]


def _background(scene: Scene, rng: np.random.Generator) -> Pixels:
    """[H, W, 3] the empty picture: base colour, a gradient of light, a texture, noise."""
    width, height = scene.width, scene.height
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    slope = rng.uniform(-26, 26, 2).astype(np.float32)
    light = x * slope[0] + y * slope[1]
    if scene.texture == "striped":
        angle, waves = rng.uniform(0, math.pi), rng.uniform(5, 11)
        phase = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi * waves)
        light = light + np.where(np.sin(phase + rng.uniform(0, 6)) > 0, 15, -15).astype(np.float32)
    elif scene.texture == "cloudy":
        light = light + _clouds(rng, width, height) * 30
    grain = 22.0 if scene.texture == "grainy" else 3.0
    noise = rng.standard_normal((height, width), dtype=np.float32) * grain
    pixels: Pixels = (light + noise)[:, :, None] + np.array(scene.base, dtype=np.float32)
    return pixels


def _clouds(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """[H, W] smooth noise of two scales, about -1 to 1."""
    total = np.zeros((height, width), dtype=np.float32)
    for cells, strength in ((4, 0.8), (9, 0.5)):
        coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        total += strength * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return total
