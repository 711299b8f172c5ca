"""Paints a scene's background: flat textures, and three that look like photographs.

All stay close to the scene's base colour, so that a thing that contrasts with that colour contrasts with the
whole background. Knows nothing about things. The same scene and random numbers give the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from florence.demo.world.scenes import Scene

Light = NDArray[np.float32]  # [H, W], or [H, W, 3] where colours differ: added to the base colour
_Texture = Callable[[np.random.Generator, int, int], Light]  # random numbers, width, height

_GRAIN: Final = 3.0  # standard deviation of sensor noise
_COARSE_GRAIN: Final = 22.0
_DISC_EDGE: Final = 4.0  # pixels over which a soft disc fades
_MIDDLE: Final = 128.0  # byte for zero light while light is blurred as bytes
_FALL_OFF: Final = 22.0  # how much darker a lens makes the corners


def background(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """The background [H, W, 3]: base colour, a light gradient, texture, noise."""
    width, height = scene.width, scene.height
    x, y = _axes(width, height)
    slope = rng.uniform(-26, 26, 2).astype(np.float32)
    light = x * slope[0] + y * slope[1]
    texture = _TEXTURES[scene.texture](rng, width, height)
    grain = _COARSE_GRAIN if scene.texture == "grainy" else _GRAIN
    noise = rng.standard_normal((height, width), dtype=np.float32) * grain
    lit = (light + noise)[:, :, None] + texture.reshape(height, width, -1)
    pixels: NDArray[np.float32] = lit + np.array(scene.base, dtype=np.float32)
    return pixels


def _axes(width: int, height: int) -> tuple[Light, Light]:
    """[1, W] and [H, 1] from -0.5 to 0.5."""
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)
    return x[None, :], y[:, None]


def _plain(rng: np.random.Generator, width: int, height: int) -> Light:
    return np.zeros((height, width), dtype=np.float32)


def _striped(rng: np.random.Generator, width: int, height: int) -> Light:
    x, y = _axes(width, height)
    angle, waves = rng.uniform(0, math.pi), rng.uniform(5, 11)
    phase = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi * waves)
    return np.where(np.sin(phase + rng.uniform(0, 6)) > 0, 15, -15).astype(np.float32)


def _cloudy(rng: np.random.Generator, width: int, height: int) -> Light:
    return (0.8 * _smooth(rng, 4, 4, width, height) + 0.5 * _smooth(rng, 9, 9, width, height)) * 30


def _hilly(rng: np.random.Generator, width: int, height: int) -> Light:
    """A hazy sky over three ridges, each nearer one darker and greener, the nearest with grass."""
    x, y = _axes(width, height)
    haze = np.broadcast_to((y + 0.2) * 30, (height, width))
    light = haze[:, :, None] + np.array((-4, 0, 8), dtype=np.float32)
    skyline = rng.uniform(-0.2, 0.05)
    for distance, tint in enumerate(((2, 6, 4), (-10, -2, -12), (-22, -8, -26))):
        ridge = np.full(width, skyline + 0.17 * distance, dtype=np.float32)
        for waves in (1, 2, 5):
            swing, phase = rng.uniform(0.2, 0.8) * 0.09 / waves, rng.uniform(0, 2 * math.pi)
            ridge += swing * np.sin(2 * math.pi * waves * x[0] + phase)
        land = np.broadcast_to(np.array(tint, dtype=np.float32), light.shape)
        if distance == 2:
            land = land + _smooth(rng, width // 3, height // 2, width, height)[:, :, None] * 7
        light = np.where((y > ridge)[:, :, None], land, light)
    return _through_lens(light, 0.6)


def _wooden(rng: np.random.Generator, width: int, height: int) -> Light:
    """Boards of different tones, with dark seams and grain along them."""
    upright = bool(rng.random() < 0.5)
    long, across = (height, width) if upright else (width, height)
    boards = int(rng.integers(3, 7))
    position = np.linspace(0, boards, across, endpoint=False, dtype=np.float32)
    tones = rng.uniform(-12, 12, boards).astype(np.float32)[position.astype(int)]
    seams = np.where(np.minimum(position % 1, 1 - position % 1) < 0.025, -26, 0).astype(np.float32)
    grain = 7 * _smooth(rng, 3, 8 * boards, long, across) + 6 * _smooth(rng, 5, 24 * boards, long, across)
    wood = grain + (tones + seams)[:, None]
    if upright:
        wood = wood.T
    return _through_lens(wood[:, :, None] + np.array((10, 0, -14), dtype=np.float32), 0.5)


def _blurry(rng: np.random.Generator, width: int, height: int) -> Light:
    """Lamps far out of focus: soft coloured discs that overlap."""
    light = np.repeat((_smooth(rng, 3, 3, width, height) * 14)[:, :, None], 3, axis=2)
    usual = rng.uniform(0.07, 0.13) * math.sqrt(width * height)
    for _ in range(int(rng.integers(10, 22))):
        left, top, radius = rng.uniform(0, width), rng.uniform(0, height), usual * rng.uniform(0.7, 1.2)
        columns = np.arange(max(0, int(left - radius)), min(width, int(left + radius) + 2))
        rows = np.arange(max(0, int(top - radius)), min(height, int(top + radius) + 2))
        far = np.hypot(columns - left, rows[:, None] - top)  # [rows, columns]
        disc = np.clip((radius - far) / _DISC_EDGE, 0, 1)[:, :, None] * rng.uniform(-20, 20, 3)
        light[np.ix_(rows, columns)] += disc.astype(np.float32)
    return _through_lens(np.clip(light, -38, 38), 1.5)


def _through_lens(light: Light, blur: float) -> Light:
    """[H, W, 3], slightly out of focus and darker towards the corners. `blur`: standard deviation in
    pixels."""
    x, y = _axes(light.shape[1], light.shape[0])
    image = Image.fromarray((light + _MIDDLE).clip(0, 255).astype(np.uint8))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32) - _MIDDLE
    corners = (x * x + y * y) * (2 * _FALL_OFF)
    lit: Light = soft - corners[:, :, None].astype(np.float32)
    return lit


def _smooth(rng: np.random.Generator, columns: int, rows: int, width: int, height: int) -> Light:
    """[H, W] random values on a grid, interpolated smoothly, about -1 to 1."""
    coarse = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


_TEXTURES: Final[dict[str, _Texture]] = {
    "plain": _plain, "striped": _striped, "cloudy": _cloudy, "grainy": _plain, "hilly": _hilly,
    "wooden": _wooden, "blurry": _blurry,
}  # fmt: skip
