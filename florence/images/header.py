"""A picture's header, and the memory that decoding takes. Knows nothing about file formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RGB_BYTES: Final = 5
"""Bytes of memory that decoding takes for each pixel, besides the file, where the decoder gives RGB (Pillow
stores four bytes) and the picture is not turned. This and the next two were measured with pictures of 20
megapixels."""
OTHER_BYTES: Final = 9
"""The same for other modes, and for turned pictures: two copies of the picture at once."""
SEEN_BYTES: Final = 14
"""The same for other modes and turned pictures as a viewer shows them: transparent pixels, opaque ones, a
mask."""
WEBP_BYTES: Final = 17
"""The same for libwebp, which composes frames, even a single one."""
HEIF_BYTES: Final = 24
"""The same for HEIF and AVIF: planes of up to 16 bits, and the copies of `SEEN_BYTES`."""
COMPOSED_BYTES: Final = 12
"""What later frames of an animation take in addition: the frame before, the new one, and a copy."""
HEIF_FORMATS: Final = ("AVIF", "HEIF")
MAX_PROFILE: Final = 2**20
"""Bytes of a colour profile; those of printers are the largest, a few hundred thousand."""


@dataclass(frozen=True, slots=True)
class Header:
    """`width` and `height` are the stored ones, before EXIF rotation; `orientation` is EXIF's 1 to 8.

    `data`: a file of the same format that is passed to the decoder, with the frame and nothing that is not
    needed (see `headers`). `frame`: its number among those in `data`, from 1. `rgb`: whether the decoder
    gives RGB. `extra_bytes`: memory that decoding this file takes besides that for pixels. `passes`: how
    often the decoder goes over all pixels; `pass_cost`: the work of one pass, in scans of a JPEG. `profile`:
    the ICC colour profile, empty if there is none. `stored`: how a TIFF's pixels are stored, in words.
    """

    format: str
    width: int
    height: int
    frames: int
    orientation: int
    data: bytes
    rgb: bool = False
    extra_bytes: int = 0
    passes: int = 1
    pass_cost: int = 1
    profile: bytes = b""
    frame: int = 1
    stored: str = ""

    def decode_bytes(self, *, original: bool) -> int:
        """Expected memory for decoding, in bytes: the file, `data`, and the pixels. `original`: see
        `seen.View`."""
        plain = self.rgb and self.orientation == 1
        if self.format == "WEBP":
            each = WEBP_BYTES
        elif self.format in HEIF_FORMATS:
            each = HEIF_BYTES
        else:
            each = RGB_BYTES if plain else OTHER_BYTES if original else SEEN_BYTES
        if self.frame > 1:
            each += COMPOSED_BYTES
        return 2 * len(self.data) + self.width * self.height * each + self.extra_bytes
