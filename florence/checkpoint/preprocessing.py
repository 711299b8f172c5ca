"""Reads a checkpoint's picture preprocessing from its `preprocessor_config.json`.

Steps that Florence-2's own files never use are refused. Knows nothing about pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence.checkpoint.files import PREPROCESSOR, PROCESSOR, read_json
from florence.errors import CheckpointError, quote
from florence.images.preprocess import Preprocessing

_STEPS: dict[str, tuple[bool | None, ...]] = {  # key of CLIPImageProcessor -> supported values
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_center_crop": (False, None),
    "do_pad": (False, None),
}
MAX_INPUT = 1000
"""Largest absolute value of a pixel after normalisation; that of Microsoft's checkpoints is 2.64."""

MIN_FACTOR = 1e-6
"""Smallest accepted standard deviation, and smallest accepted value of white."""

_MAX_FILTER = 5
"""Pillow's filters have the numbers 0 to 5; 3 is bicubic."""


def read_preprocessing(directory: Path, side: int | None = None) -> Preprocessing:
    """Read `preprocessor_config.json`, or the object `image_processor` in `processor_config.json`.

    `side`: side in pixels of the square that pictures are resized to; None: as the file says; needed where
    the file says `do_resize: false`. Keys that change no pixels are ignored. Raises `CheckpointError` if the
    file is missing or unreadable, or has a step that Florence-2's own files never use (a crop, padding, a
    size that is not square).
    """
    file = directory / PREPROCESSOR
    if file.is_file() or not (directory / PROCESSOR).is_file():
        values: Any = read_json(file)
    else:  # as transformers 5 saves it
        file = directory / PROCESSOR
        values = read_json(file).get("image_processor")
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} has no object 'image_processor'")
    return _Reader(file, values).read(side)


class _Reader:
    """The values of one file, with errors that name file and key."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self._file, self._values = file, values

    def read(self, side: int | None) -> Preprocessing:
        for key, supported in _STEPS.items():
            value = self._values.get(key, supported[0])
            if not any(value is other for other in supported):
                raise self._refused(key, value, f"supported is only {supported[0]}")
        height, width = self._size() if side is None else (side, side)
        resample = self._values.get("resample", 3)
        if type(resample) is not int or not 0 <= resample <= _MAX_FILTER:
            raise self._refused("resample", resample, f"expected an integer from 0 to {_MAX_FILTER}")
        rescale = self._values.get("rescale_factor", 1 / 255)
        if not _is_finite(rescale) or rescale <= 0:
            raise self._refused("rescale_factor", rescale, "expected a positive number")
        preprocessing = Preprocessing(
            height=height,
            width=width,
            resample=resample,
            rescale=float(rescale),
            mean=self._channels("image_mean", positive=False),
            std=self._channels("image_std", positive=True),
        )
        self._check_range(preprocessing)
        return preprocessing

    def _check_range(self, found: Preprocessing) -> None:
        """Refuse factors that would make the model's input infinite or NaN in 16 bits."""
        white = found.rescale * 255
        values = [
            max(abs(mean), abs(white - mean)) / std for mean, std in zip(found.mean, found.std, strict=True)
        ]
        if not max(values) <= MAX_INPUT or min(white, *found.std) < MIN_FACTOR:
            raise CheckpointError(
                f"{self._file}: with its rescale_factor, image_mean and image_std pixels become numbers up "
                f"to {max(values):.3g}, expected at most {MAX_INPUT}, and no factor below {MIN_FACTOR}"
            )

    def _size(self) -> tuple[int, int]:
        """Height and width."""
        if (resized := self._values.get("do_resize", True)) is not True:
            expected = "so FLORENCE_INPUT_SIZE has to say the size that pictures are resized to"
            raise self._refused("do_resize", resized, expected)
        size = self._values.get("size")
        if not isinstance(size, dict) or size.keys() != {"height", "width"}:
            raise self._refused("size", size, "expected an object with height and width")
        height, width = size["height"], size["width"]
        if any(type(side) is not int or side < 1 for side in (height, width)):
            raise self._refused("size", size, "expected positive integers")
        if height != width:
            raise CheckpointError(f"{self._file} asks for pictures of {height}x{width}: expected a square")
        return height, width

    def _channels(self, key: str, *, positive: bool) -> tuple[float, float, float]:
        """One number for each of red, green and blue."""
        values = self._values.get(key)
        if (
            not isinstance(values, list)
            or len(values) != 3
            or not all(_is_finite(value) and (value > 0 or not positive) for value in values)
        ):
            raise self._refused(key, values, f"expected three {'positive ' if positive else ''}numbers")
        red, green, blue = map(float, values)
        return red, green, blue

    def _refused(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self._file}: {key} is {quote(value)}, {expected}")


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
