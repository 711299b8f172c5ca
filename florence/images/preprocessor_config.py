"""What a checkpoint wants done to its pictures, read from its `preprocessor_config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from florence.errors import CheckpointError
from florence.images.preprocess import Preprocessing


def read_preprocessing(directory: Path) -> Preprocessing:
    """The checkpoint's `preprocessor_config.json`, or the picture's part of a `processor_config.json`.

    Raises CheckpointError when it is missing, unreadable, or asks for a step that Florence-2's own never
    takes (a crop, padding, a size that is not square).
    """
    file = directory / "preprocessor_config.json"
    inner = None
    if not file.is_file():
        file, inner = directory / "processor_config.json", "image_processor"  # where transformers 5 saves it
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        config = _PreprocessorFile.model_validate(content if inner is None else content[inner])
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} has no preprocessor_config.json") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{file} asks for what Florence-2 does not do: {problems}") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{file} can't be read: {error}") from error
    if config.size.height != config.size.width:
        raise CheckpointError(
            f"{file} asks for pictures of {config.size.height}x{config.size.width}: expected a square"
        )
    return Preprocessing(
        height=config.size.height,
        width=config.size.width,
        resample=config.resample,
        rescale=config.rescale_factor,
        mean=config.image_mean,
        std=config.image_std,
    )


class _Size(BaseModel):
    model_config = ConfigDict(extra="forbid")  # not shortest_edge

    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _PreprocessorFile(BaseModel):
    """The keys of CLIPImageProcessor that change pixels; all others are ignored."""

    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    do_center_crop: Literal[False, None] = None
    do_pad: Literal[False, None] = None
    size: _Size
    resample: Annotated[int, Field(ge=0, le=5)] = 3
    rescale_factor: _Positive = 1 / 255
    image_mean: tuple[_Finite, _Finite, _Finite]
    image_std: tuple[_Positive, _Positive, _Positive]
