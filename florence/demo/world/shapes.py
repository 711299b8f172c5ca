"""Outlines of the demo world's shapes, as polygons around the origin.

Knows nothing about colours or pictures. y points down, as in a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [N, 2], x and y

CURVE_POINTS: Final = 36  # vertices of a full curve as drawn
ANSWER_STEP: Final = 3  # an answer has every third vertex of a curve
MAX_CORNERS: Final = 12  # most corners of an answer's polygon
_CURVED: Final = frozenset({"circle", "ring", "heart", "moon"})
RING_HOLE: Final = 0.55  # radius of a ring's hole relative to the ring's

# Largest rotation of a shape, in degrees to each side: a square rotated further would be a diamond.
TURN: Final = {"square": 14.0, "diamond": 14.0, "cross": 18.0, "heart": 40.0, "circle": 0.0, "ring": 0.0}


def unit_outline(shape: str) -> Points:
    """The vertices of a shape with a radius of about 1, clockwise on the screen. Raises `KeyError` for an
    unknown shape."""
    return _OUTLINES[shape]()


def turned(points: Points, degrees: float) -> Points:
    """The points rotated clockwise on the screen about the origin."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    result: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return result


def answer_polygon(shape: str, outline: Points) -> Points:
    """The polygon for an answer: few vertices, clockwise, from the topmost one (then the leftmost)."""
    return from_topmost(outline[::ANSWER_STEP] if shape in _CURVED else outline)


def from_topmost(points: Points) -> Points:
    """The same polygon, starting at its topmost vertex (then the leftmost)."""
    first = min(range(len(points)), key=lambda index: (points[index, 1], points[index, 0]))
    return np.roll(points, -first, axis=0)


def _arc(start: float, stop: float, count: int, open_end: bool = False) -> Points:
    angles = np.radians(np.linspace(start, stop, count, endpoint=not open_end))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int, first: float) -> Points:
    return _arc(first, first + 360.0, corners, open_end=True)


def _star() -> Points:
    points = _regular(10, -90.0)
    points[1::2] *= 0.42
    return points


def _heart() -> Points:
    t = np.linspace(0.0, 2 * math.pi, CURVE_POINTS, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y + 2.5], axis=1) / 17.0


def _cross() -> Points:
    arm, thick = 0.95, 0.31
    quarter = np.array([(-thick, -arm), (thick, -arm), (thick, -thick)])
    return np.concatenate([turned(quarter, 90.0 * turn) for turn in range(4)])


def _moon() -> Points:
    """A disc minus another one: the outer arc, then the inner arc back."""
    outer = _arc(55.0, 305.0, 24)
    tip = outer[0]
    centre = 0.52
    reach = math.degrees(math.atan2(tip[1], tip[0] - centre))
    radius = math.hypot(tip[0] - centre, tip[1])
    inner = _arc(360.0 - reach, reach, 14)[1:-1] * radius + np.array([centre, 0.0])
    return np.concatenate([outer, inner])


_ARROW: Final = (
    (0.98, 0.0), (0.2, 0.72), (0.2, 0.27), (-0.95, 0.27), (-0.95, -0.27), (0.2, -0.27), (0.2, -0.72),
)  # fmt: skip
_DIAMOND: Final = ((0.0, -1.0), (0.58, 0.0), (0.0, 1.0), (-0.58, 0.0))
_OUTLINES: Final[dict[str, Callable[[], Points]]] = {
    "circle": lambda: _regular(CURVE_POINTS, 0.0),
    "ring": lambda: _regular(CURVE_POINTS, 0.0),
    "square": lambda: _regular(4, -135.0),
    "triangle": lambda: _regular(3, -90.0),
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "arrow": lambda: np.array(_ARROW),
    "diamond": lambda: np.array(_DIAMOND),
}
