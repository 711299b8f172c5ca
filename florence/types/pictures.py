"""The options that select a picture of a file and say how it becomes RGB: as a viewer shows it, or as the
original's processor does it.

Knows nothing about how that is done; `florence.images.seen` does it.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Pictures = Literal["seen", "original"]
MOST_NUMBER: Final = 1_000_000


class PictureOptions(BaseModel):
    """Which picture of the file, and how it becomes RGB."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: Pictures | None = Field(
        default=None,
        description="How the picture becomes RGB. seen: as a viewer shows it; original: as the original's "
        "processor converts it, which ignores transparency, colour profiles and depth beyond 8 bits.",
    )
    background: str | None = Field(
        default=None,
        pattern=r"^#[0-9A-Fa-f]{6}$",
        description="Colour behind transparent pixels, as #rrggbb; default: white.",
    )
    frame: int | None = Field(
        default=None,
        ge=1,
        le=MOST_NUMBER,
        description="Number of the frame of an animation, from 1; default: the first.",
    )
    page: int | None = Field(
        default=None,
        ge=1,
        le=MOST_NUMBER,
        description="Number of the page of a TIFF file, or of a PDF where PDFs are read, from 1; default: "
        "the first.",
    )
