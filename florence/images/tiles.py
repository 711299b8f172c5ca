"""Where a picture is cut into tiles: overlapping parts, each of which is resized to the model's input size.

All numbers are pixels of the upright picture. Knows nothing about decoding or tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from florence.errors import ImageError

Bounds = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the picture."""

MAX_TILES: Final = 128
_ROUNDING: Final = 1e-9  # of a tile: no further tile for a remainder below this


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture is cut.

    `grid`: columns and rows; None: as many as are needed for tiles of `scale` times the model's input size,
    and one along a side that is no longer than that. `overlap`: of neighbouring tiles, as a fraction of a
    tile's side, horizontally and vertically. `max_tiles`: tiles of one picture.
    """

    grid: tuple[int, int] | None
    scale: float
    overlap: tuple[float, float]
    max_tiles: int = MAX_TILES

    def counts(self, size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
        """Columns and rows for a picture. `size`, `input_size`: width and height.

        Raises `ImageError` for more than `max_tiles` tiles.
        """
        columns, rows = self.grid or (
            min(self._count(axis, size[axis], input_size[axis]), size[axis]) for axis in (0, 1)
        )
        if columns * rows > self.max_tiles:
            raise ImageError(
                f"a picture of {size[0]}x{size[1]} pixels makes {columns}x{rows} = {columns * rows} tiles; "
                f"up to {self.max_tiles} are allowed (FLORENCE_MAX_TILES): send a larger tile_scale, a "
                "smaller tile_overlap, or a grid such as tiles=3x4"
            )
        return columns, rows

    def cut(self, size: tuple[int, int], input_size: tuple[int, int]) -> list[Bounds]:
        """The tiles, row by row; together they cover the picture. Arguments as for `counts`.

        Raises `ImageError` as `counts` does, and for a grid with more columns or rows than the picture has
        pixels.
        """
        counts = self.counts(size, input_size)
        if counts[0] > size[0] or counts[1] > size[1]:
            raise ImageError(
                f"a picture of {size[0]}x{size[1]} pixels is too small for {counts[0]}x{counts[1]} tiles; "
                "send a smaller grid"
            )
        across, down = (
            _spread(size[axis], counts[axis], self._side(axis, size[axis], counts[axis], input_size[axis]))
            for axis in (0, 1)
        )
        return [(left, top, right, bottom) for top, bottom in down for left, right in across]

    def _side(self, axis: int, length: int, count: int, input_length: int) -> float:
        """The side of a tile along an axis, where `count` tiles cover `length`."""
        if self.grid is None:
            return self.scale * input_length
        return length / (count - (count - 1) * self.overlap[axis])

    def _count(self, axis: int, length: int, input_length: int) -> int:
        side, overlap = self.scale * input_length, self.overlap[axis]
        if length <= side + 0.5:  # equal in whole pixels
            return 1
        return math.ceil((length / side - overlap) / (1 - overlap) - _ROUNDING)


def _spread(length: int, count: int, side: float) -> list[tuple[int, int]]:
    """Start and end of `count` evenly spread parts of one length; at least a pixel each."""
    if count == 1:
        return [(0, length)]
    side = min(max(side, 1.0), length)
    step = (length - side) / (count - 1)
    return [(round(index * step), min(length, round(index * step + side))) for index in range(count)]
