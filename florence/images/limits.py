"""Limits on pictures, checked before a pixel is decoded. Needs no libraries."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from florence.errors import SettingsError

PDF_DPI: Final = 150
MAX_PDF_DPI: Final = 600
PILLOW_MAX_PIXELS: Final = 89_478_485
"""Pillow warns of "decompression bombs" above this many, and can only be told otherwise for a whole
process."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is accepted: bytes of the file, pixels (width times height), pixels of a side, frames or pages in
    it, and `decode_bytes`: the memory that decoding takes, that of all readers of a process together.
    `pdf_dpi`: dots an inch at which a page of a PDF is rendered; 0 where PDFs are not read.

    Raises SettingsError for limits below 1, for more pixels than Pillow decodes without a warning, and for
    more than 600 dots an inch.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    max_side: int = 65_535  # the longest that a JPEG can have
    max_frames: int = 1000
    decode_bytes: int = 512 * 2**20
    pdf_dpi: int = PDF_DPI

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name == "pdf_dpi" else 1
            if getattr(self, field.name) < least:
                raise SettingsError(f"{field.name} must be at least {least}, not {getattr(self, field.name)}")
        if self.max_pixels > PILLOW_MAX_PIXELS:
            raise SettingsError(f"max_pixels must be at most {PILLOW_MAX_PIXELS}, not {self.max_pixels}")
        if self.pdf_dpi > MAX_PDF_DPI:
            raise SettingsError(f"pdf_dpi must be at most {MAX_PDF_DPI}, not {self.pdf_dpi}")


DEFAULT_LIMITS: Final = ImageLimits()
