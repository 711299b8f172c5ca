"""Makes scenes hard: a poor camera, and things cut by the picture's edge.

Seeded and without side effects. Knows nothing about what the things are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from florence.demo.world.shapes import Points

MAX_BLUR: Final = 0.01  # standard deviation over the square root of the picture's area
MAX_NOISE: Final = 14.0  # standard deviation of each channel, in levels of 0 to 255
MIN_CONTRAST: Final = 0.85  # contrast relative to a good camera
CUT_SHARE: Final = 0.35  # share of large shapes that are cut
CUT: Final = (0.1, 0.3)  # share of a cut shape's width or height that is outside


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera's defects. `blur`, `noise`: standard deviations, in pixels and in colour levels; `contrast`: 1
    is unchanged, 0 is uniformly grey."""

    blur: float
    noise: float
    contrast: float

    @classmethod
    def draw(cls, rng: np.random.Generator, side: float) -> Camera:
        """A random camera; `side`: square root of the picture's area."""
        blur, noise, contrast = rng.uniform((0, 0, MIN_CONTRAST), (MAX_BLUR * side, MAX_NOISE, 1))
        return cls(float(blur), float(noise), float(contrast))

    def take(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The RGB picture with this camera's contrast, then blur, then sensor noise."""
        pixels = np.asarray(image, dtype=np.float32)
        middle = pixels.mean()
        flat = Image.fromarray((middle + (pixels - middle) * self.contrast).clip(0, 255).astype(np.uint8))
        soft = np.asarray(flat.filter(ImageFilter.GaussianBlur(self.blur)), dtype=np.float32)
        noisy = soft + rng.standard_normal(soft.shape, dtype=np.float32) * self.noise
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def across_the_edge(rng: np.random.Generator, outline: Points, size: tuple[int, int]) -> Points:
    """The outline [N, 2], moved so that one edge of the picture cuts it, at a random position along that
    edge.

    It must be smaller than the picture.
    """
    low, high = outline.min(axis=0), outline.max(axis=0)
    axis, far = int(rng.integers(2)), bool(rng.random() < 0.5)
    corner = rng.uniform((0.0, 0.0), np.array(size) - (high - low))  # top left corner of its box
    outside = rng.uniform(*CUT) * (high - low)[axis]
    corner[axis] = size[axis] - (high - low)[axis] + outside if far else -outside
    moved: Points = outline - low + corner
    return moved


def clip(outline: Points, size: tuple[int, int]) -> Points:
    """The part [M, 2] of an outline [N, 2] inside the picture, by Sutherland and Hodgman's algorithm
    (1974)."""
    for axis, limit, sign in ((0, 0.0, 1), (0, float(size[0]), -1), (1, 0.0, 1), (1, float(size[1]), -1)):
        kept: list[Points] = []
        inside = sign * (outline[:, axis] - limit) >= 0
        for index, point in enumerate(outline):
            before = outline[index - 1]
            if inside[index] != inside[index - 1]:
                share = (limit - before[axis]) / (point[axis] - before[axis])
                kept.append(before + (point - before) * share)
            if inside[index]:
                kept.append(point)
        outline = np.array(kept).reshape(-1, 2)
    return outline
