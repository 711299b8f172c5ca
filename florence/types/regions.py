"""Converts regions between pixels and the thousand bins of each axis that the model has tokens for: `<loc_0>`
to `<loc_999>`.

Pixels are those of the picture after EXIF rotation: x to the right, y down, (0, 0) the top left corner,
(width, height) the bottom right one. Knows nothing about tasks, prompts or answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from florence.errors import RegionError, RequestError, quote

BINS: Final = 1000
LOCATION_PATTERN: Final = r"<loc_(0|[1-9][0-9]{0,2})>"  # exactly the vocabulary's thousand tokens

Region = Sequence[float] | str
"""x1, y1, x2, y2 in pixels of the picture after EXIF rotation, also as text; or four `<loc_n>` as text."""
PictureSize = Sequence[float] | None
"""Width and height in pixels; None if unknown."""

_FOUR_LOCATIONS = re.compile(LOCATION_PATTERN * 4)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
LOCATIONS_EXAMPLE: Final = "<loc_53><loc_333><loc_932><loc_775>"
PIXELS_EXAMPLE: Final = (34, 160, 597, 372)  # the same region in a picture of 640 x 480 pixels
REGION_EXAMPLES: Final = (
    f"x1, y1, x2, y2 in pixels, for example '{str(PIXELS_EXAMPLE).strip('()')}', or four locations, in "
    f"thousandths of the picture's width and height, for example '{LOCATIONS_EXAMPLE}'"
)
REGION_FORMS: Final = (
    "x1, y1, x2, y2 in pixels of the picture after EXIF rotation, or as text <loc_x1><loc_y1><loc_x2>"
    "<loc_y2> in thousandths of it."
)
"""For descriptions of a request's region."""
_TINY = 16  # pixels: in smaller pictures, the first pixel may be a region
_LONGEST_TEXT = 1000  # characters; four numbers need far fewer


def read_image_size(image_size: Sequence[float]) -> tuple[float, float]:
    """(width, height) as floats. Raises `RegionError` unless they are two positive finite numbers."""
    sizes = _read_floats(image_size)
    if sizes is None or len(sizes) != 2 or not all(0 < size < math.inf for size in sizes):
        raise RegionError(f"image_size must be (width, height), two numbers above 0, got {quote(image_size)}")
    return sizes[0], sizes[1]


def need_image_size(image_size: PictureSize) -> tuple[float, float]:
    """`read_image_size` for an answer in pixels. Raises `RequestError` where the size is None or invalid."""
    if image_size is None:
        raise RequestError("this answer is in pixels; give the picture's size, image_size=(width, height)")
    return read_image_size(image_size)


def region_text(region: Region, image_size: Sequence[float]) -> str:
    """A region as four location tokens, from pixels, from pixels written as text, or from such tokens.

    Raises `RegionError` if it is none of these, not finite, empty, or not inside the picture.
    """
    if not isinstance(region, str):
        return _sent_pixels(region, image_size)
    text = region.strip()
    if "<" in text:
        return _check_locations(text)
    if len(text) > _LONGEST_TEXT:
        raise RegionError(f"the region {quote(region)} is too long; write {REGION_EXAMPLES}")
    parts = text.strip("()[]").replace(",", " ").split()
    if len(parts) != 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise RegionError(f"the region {quote(region)} is not four numbers; write {REGION_EXAMPLES}")
    return _sent_pixels([float(part) for part in parts], image_size)


def _sent_pixels(region: Sequence[float], image_size: Sequence[float]) -> str:
    """`region_to_locations` for numbers from a request. Raises `RegionError` also for fractions of the
    picture (0 to 1), which would mean its corner."""
    locations = region_to_locations(region, image_size)
    width, height = read_image_size(image_size)
    x1, y1, x2, y2 = (float(value) for value in region)
    if max(x2, y2) <= 1 and min(width, height) > _TINY:
        pixels = [x1 * width, y1 * height, x2 * width, y2 * height]
        raise RegionError(
            f"the region {quote(region)} looks like parts of the width and height; in this picture of "
            f"{width:g}x{height:g} pixels write {pixels}, or four locations in thousandths, for example "
            f"'{LOCATIONS_EXAMPLE}'"
        )
    return locations


def region_to_locations(region: Sequence[float], image_size: Sequence[float]) -> str:
    """x1, y1, x2, y2 in pixels as `<loc_a><loc_b><loc_c><loc_d>`, by the original's quantizer.

    The bin is floor(v / (size / 1000)), at most 999: the right and bottom edges belong to the last bin.
    Raises `RegionError` if the region is not finite, empty, or not inside the picture.
    """
    width, height = read_image_size(image_size)
    x1, y1, x2, y2 = _check_region(region, width, height)
    bins = (_bin(x1, width), _bin(y1, height), _bin(x2, width), _bin(y2, height))
    return "".join(f"<loc_{bin_}>" for bin_ in bins)


def locations_to_pixels(bins: Sequence[int], image_size: PictureSize) -> list[float]:
    """Bins in the order x, y, x, y, ... as pixels: the middle of each bin, in double precision."""
    width, height = need_image_size(image_size)
    return [(bin_ + 0.5) * (height if index % 2 else width) / BINS for index, bin_ in enumerate(bins)]


def _bin(value: float, size: float) -> int:
    return min(math.floor(value / (size / BINS)), BINS - 1)


def _check_locations(text: str) -> str:
    match = _FOUR_LOCATIONS.fullmatch(text)
    if match is None:
        raise RegionError(
            f"the region {quote(text)} is not four locations from <loc_0> to <loc_{BINS - 1}>; "
            f"write {REGION_EXAMPLES}"
        )
    x1, y1, x2, y2 = (int(bin_) for bin_ in match.groups())
    if x2 < x1 or y2 < y1:
        raise RegionError(f"the region {text} ends before it begins; the corners are x1, y1, x2, y2")
    return text


def _check_region(region: Sequence[float], width: float, height: float) -> tuple[float, float, float, float]:
    values = _read_floats(region)
    if values is None or len(values) != 4:
        raise RegionError(f"the region {quote(region)} is not four numbers; write {REGION_EXAMPLES}")
    x1, y1, x2, y2 = values
    if not all(math.isfinite(value) for value in values):
        raise RegionError(
            f"the region {quote(region)} has a number that is not finite; write {REGION_EXAMPLES}"
        )
    if x2 <= x1 or y2 <= y1:
        raise RegionError(f"the region {quote(region)} is empty: x2 must be above x1, and y2 above y1")
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise RegionError(
            f"the region {quote(region)} is not inside the picture, which is {width:g} pixels wide and "
            f"{height:g} high, 0, 0 being its top left corner"
        )
    return x1, y1, x2, y2


def _read_floats(values: Sequence[float]) -> list[float] | None:
    """The values as floats; None if they are not a sequence of numbers."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
