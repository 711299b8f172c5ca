"""Limits on pictures, checked before a pixel is decoded. Needs no libraries."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from florence.errors import SettingsError

PILLOW_MAX_PIXELS: Final = 89_478_485
"""Pillow warns of "decompression bombs" above this many, and can only be told otherwise for a whole
process."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is accepted: bytes of the file, pixels (width times height), pixels of a side, frames or pages in
    it, and `decode_bytes`: the memory that decoding takes, that of all readers of a process together.

    Raises SettingsError for limits below 1, and for more pixels than Pillow decodes without a warning.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    max_side: int = 65_535  # the longest that a JPEG can have
    max_frames: int = 1000
    decode_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise SettingsError(f"{field.name} must be at least 1, not {getattr(self, field.name)}")
        if self.max_pixels > PILLOW_MAX_PIXELS:
            raise SettingsError(f"max_pixels must be at most {PILLOW_MAX_PIXELS}, not {self.max_pixels}")


DEFAULT_LIMITS: Final = ImageLimits()
