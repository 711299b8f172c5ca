"""Limits on pictures, checked before a pixel is decoded. Needs no libraries.

Bounds and descriptions of the limits that are settings stand here only; `florence.settings` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

from florence.errors import SettingsError

PDF_DPI: Final = 150
MAX_PDF_DPI: Final = 600
PILLOW_MAX_PIXELS: Final = 89_478_485
"""Above this many pixels Pillow warns of "decompression bombs"; its limit can only be changed for the whole
process."""


def _declare(default: int, description: str, **bounds: int) -> Any:
    """A limit that is a setting. `bounds`: `ge` and `le`, as in pydantic."""
    return field(default=default, metadata={"description": description, "bounds": bounds})


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is accepted: bytes of the file, pixels (width times height), pixels of the longer side, frames or
    pages, and `decode_bytes`: memory for decoding, of all readers of a process together. `pdf_dpi`:
    resolution at which PDF pages are rendered, in dots per inch; 0: PDFs are not accepted.

    Raises `SettingsError` for limits below 1, for more pixels than Pillow decodes without a warning, and for
    more than 600 dots per inch.
    """

    max_bytes: int = _declare(20 * 2**20, "Most bytes of an encoded picture.", ge=1, le=2**31)
    max_pixels: int = _declare(64_000_000, "Most pixels of a picture.", ge=1, le=PILLOW_MAX_PIXELS)
    max_side: int = _declare(  # by default the longest side of a JPEG
        65_535, "Most pixels of a picture's longer side.", ge=1, le=2**20
    )
    max_frames: int = _declare(1000, "Most frames or pages of a picture.", ge=1, le=10**6)
    decode_bytes: int = _declare(
        512 * 2**20,
        "Memory that decoding takes, in all readers of a worker together: a picture that needs "
        "more waits for the others, one that never fits gets a 413.",
        ge=16 * 2**20,
        le=2**40,
    )
    pdf_dpi: int = PDF_DPI

    def __post_init__(self) -> None:
        for each in fields(self):
            minimum = 0 if each.name == "pdf_dpi" else 1
            if getattr(self, each.name) < minimum:
                raise SettingsError(
                    f"{each.name} must be at minimum {minimum}, not {getattr(self, each.name)}"
                )
        if self.max_pixels > PILLOW_MAX_PIXELS:
            raise SettingsError(f"max_pixels must be at most {PILLOW_MAX_PIXELS}, not {self.max_pixels}")
        if self.pdf_dpi > MAX_PDF_DPI:
            raise SettingsError(f"pdf_dpi must be at most {MAX_PDF_DPI}, not {self.pdf_dpi}")


DEFAULT_LIMITS: Final = ImageLimits()
