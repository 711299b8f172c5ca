"""Reads a checkpoint's picture preprocessing from its `preprocessor_config.json`.

Steps that Florence-2's own files never use are refused. Knows nothing about pictures.
"""

from __future__ import annotations

import math
from pathlib import Path

from florence.checkpoint.files import PREPROCESSOR, PROCESSOR
from florence.checkpoint.json_values import JsonValues
from florence.images.preprocess import Preprocessing

MAX_INPUT = 1000
"""Largest absolute value of a pixel after normalisation; that of Microsoft's checkpoints is 2.64."""

MIN_FACTOR = 1e-6
"""Smallest accepted standard deviation, and smallest accepted value of white."""

MAX_SIDE = 2**16
"""Largest accepted side of the model's input in pixels; that of the tower is far smaller."""

_MAX_FILTER = 5
"""Pillow's filters have the numbers 0 to 5; 3 is bicubic."""


def read_preprocessing(directory: Path, side: int | None = None) -> Preprocessing:
    """Read `preprocessor_config.json`, or the object `image_processor` in `processor_config.json`.

    `side`: side in pixels of the square that pictures are resized to; None: as the file says; needed where
    the file says `do_resize: false`. Keys that change no pixels are ignored. Raises `CheckpointError` if the
    file is missing or unreadable, or has a step that Florence-2's own files never use (a crop, padding, a
    size that is not square).
    """
    if (directory / PREPROCESSOR).is_file() or not (directory / PROCESSOR).is_file():
        values = JsonValues.of_file(directory / PREPROCESSOR)
    else:  # as transformers 5 saves it
        values = JsonValues.of_file(directory / PROCESSOR).section("image_processor")
    values.require("do_rescale", True)
    values.require("do_normalize", True)
    values.require("do_center_crop", False)
    values.require("do_pad", False)
    side = _side(values) if side is None else side
    found = Preprocessing(
        height=side,
        width=side,
        resample=values.integer("resample", 3, minimum=0, maximum=_MAX_FILTER),
        rescale=values.number("rescale_factor", 1 / 255),
        mean=_channels(values, "image_mean"),
        std=_channels(values, "image_std"),
    )
    _check_range(values, found)
    return found


def _side(values: JsonValues) -> int:
    """Height and width of the square that pictures are resized to."""
    if values.get("do_resize", True) is not True:
        why = "so FLORENCE_INPUT_SIZE has to say the size that pictures are resized to"
        raise values.refused("do_resize", why)
    size = values.section("size")
    height, width = size.integer("height", maximum=MAX_SIDE), size.integer("width", maximum=MAX_SIDE)
    if height != width or len(values.get("size")) > 2:
        raise values.refused("size", "expected a square, with height and width alone")
    return height


def _channels(values: JsonValues, key: str) -> tuple[float, float, float]:
    """One number for each of red, green and blue."""
    red, green, blue = values.numbers(key, 3)
    return red, green, blue


def _check_range(values: JsonValues, found: Preprocessing) -> None:
    """Refuse factors that would make the model's input infinite or NaN in 16 bits."""
    white, largest = found.rescale * 255, math.inf
    if min(white, *found.std) >= MIN_FACTOR:
        pairs = zip(found.mean, found.std, strict=True)
        largest = max(max(abs(mean), abs(white - mean)) / std for mean, std in pairs)
    if largest > MAX_INPUT:
        raise values.refused(
            "image_std",
            f"which with rescale_factor and image_mean makes pixels numbers up to {largest:.3g}: expected at "
            f"most {MAX_INPUT}, and no factor below {MIN_FACTOR}",
        )
