"""The options that say whether and how a request's picture is cut into tiles.

Knows nothing about the implementation: `florence.images.tiles` cuts, `florence.answers.tiled` merges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

OFF: Final = "off"
AUTO: Final = "auto"
OF_TILES: Final = ("tile_scale", "tile_overlap")
"""The options that only have a meaning with `tiles`."""


@dataclass(frozen=True, slots=True)
class UsualTiles:
    """Defaults of `tile_scale` and of `tile_overlap` (horizontal, vertical)."""

    scale: float
    overlap: tuple[float, float]


OF_BOXES: Final = UsualTiles(2.0, (0.2, 0.2))
OF_TEXT: Final = UsualTiles(1.75, (0.4, 0.25))
"""For tasks that read text: a line of text is long and low. These and the other defaults were chosen by
`benchmarks/tiles.py`."""


class TileOptions(BaseModel):
    """Into which tiles the picture is cut. Off by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles: str | None = Field(
        default=None,
        pattern=r"^(off|auto|[1-9][0-9]{0,2}x[1-9][0-9]{0,2})$",
        description="Cut a large picture into overlapping tiles and merge their answers. auto: tiles of the "
        "size that tile_scale says; 3x4: three columns and four rows; off: don't cut.",
    )
    tile_scale: float | None = Field(
        default=None,
        ge=0.1,
        le=100,
        allow_inf_nan=False,
        description="With tiles=auto: side of a tile, relative to the model's input size; default: 2, for "
        "tasks that read text 1.75.",
    )
    tile_overlap: float | None = Field(
        default=None,
        ge=0,
        le=0.9,
        allow_inf_nan=False,
        description="With tiles: overlap of neighbouring tiles, relative to a tile's side, in both "
        "directions; default: 0.2, for tasks that read text 0.4 horizontally and 0.25 vertically.",
    )

    @model_validator(mode="after")
    def _tile_with_tiles(self) -> TileOptions:
        given = [name for name in OF_TILES if getattr(self, name) is not None]
        if given and self.tiles is None:  # tiles=off explicitly turns cutting off
            raise ValueError(f"{' and '.join(given)}: nothing is cut without tiles=auto or a grid")
        if self.tile_scale is not None and self.grid is not None:
            raise ValueError(f"tile_scale is for tiles=auto; with tiles={self.tiles} leave it out")
        return self

    @property
    def tiled(self) -> bool:
        """Whether the picture is cut."""
        return self.tiles not in (None, OFF)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Columns and rows if `tiles` gives them, else None."""
        if self.tiles in (None, OFF, AUTO):
            return None
        columns, _, rows = str(self.tiles).partition("x")
        return int(columns), int(rows)
