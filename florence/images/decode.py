"""Bytes, paths and PIL images to RGB pictures, and those to the pixels that the model sees.

The format is told by the bytes. Limits on bytes, pixels and frames are checked against the header before a
pixel is decoded. Of animations and documents the first frame is taken. Other modes become RGB as
`Image.convert("RGB")` does it, which is what callers of the original had to do: alpha is dropped, 16 bit
values are clipped.

Pillow is left as it is found: no setting of it is changed, and none of its warnings comes out, in any thread.

`Preprocessing` is what a checkpoint wants done to its pictures.

Knows nothing about tensors, tasks or HTTP. Does not cover: URLs, formats beside PNG, JPEG, WebP, GIF, BMP and
TIFF, colour profiles (the original ignores them too).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from florence.errors import CheckpointError, ImageError, ImageTooLarge
from florence.images.headers import Header, read_header
from florence.images.limits import DEFAULT_LIMITS, ImageLimits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What each EXIF orientation asks for (CIPA DC-008, tag 0x0112); 1 is "as stored".
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a checkpoint wants done to a picture before the model.

    It is resized to `height` x `width` with Pillow's filter `resample`; then, on the model's device,
    multiplied by `rescale` (1/255), minus `mean`, divided by `std`, both one number a channel (R, G, B).
    """

    height: int
    width: int
    resample: int
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


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


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The first frame of an encoded picture: RGB, turned as its EXIF orientation says.

    Raises ImageTooLarge above a limit, ImageError for bytes that are empty, cut short or no picture in a
    known format.
    """
    _check_bytes(len(data), limits)
    header = read_header(data, limits.max_frames)
    _check_pixels(header.width, header.height, limits)
    if header.frames > limits.max_frames:
        raise ImageTooLarge(f"the picture has more than the {limits.max_frames} frames that are allowed")
    image = _to_rgb(_decode(header))
    turn = _TURNS.get(header.orientation)
    return image if turn is None else image.transpose(turn)


def load_image(
    image: Image.Image | bytes | str | os.PathLike[str], limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """A picture as RGB: a PIL image as it is (not turned), bytes and the file at a path through `open_image`.

    Raises ImageError and ImageTooLarge.
    """
    if isinstance(image, Image.Image):
        _check_pixels(*image.size, limits)
        return _to_rgb(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return open_image(bytes(image), limits)
    if isinstance(image, str | os.PathLike):
        return open_image(_read_file(Path(image), limits), limits)
    raise ImageError(f"a picture is given as a PIL image, bytes or a path, not as {type(image).__name__}")


def resize_pixels(image: Image.Image, height: int, width: int, resample: int) -> NDArray[np.uint8]:
    """An RGB picture resized to exactly this size, whatever its aspect ratio: uint8 [height, width, 3].

    `resample` is Pillow's number of the filter (3: bicubic with antialiasing). Torch's bicubic differs from
    it by one level in places, and the checkpoints were trained with Pillow's.
    """
    import numpy as np

    return np.array(image.resize((width, height), Image.Resampling(resample)), dtype=np.uint8)


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count == 0:
        raise ImageError("the picture is empty: it has 0 bytes")
    if count > limits.max_bytes:
        raise ImageTooLarge(f"the picture has {count} bytes; up to {limits.max_bytes} are allowed")


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture has no pixels: its size is {width}x{height}")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the picture has {width}x{height} = {width * height} pixels; "
            f"up to {limits.max_pixels} are allowed"
        )


def _read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(f"the picture {str(path)!r} can't be read: {error}") from error
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the picture {str(path)!r} has more than the {limits.max_bytes} bytes allowed")
    return data


def _decode(header: Header) -> Image.Image:
    try:
        image = Image.open(BytesIO(header.data), formats=[header.format])
        found = image.size
        if found == (header.width, header.height):
            image.load()
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its text is of a file object
        raise ImageError(f"the {header.format} picture's header is damaged") from error
    except Exception as error:  # Pillow raises nearly any type for hostile bytes
        raise ImageError(f"the {header.format} picture is cut short or damaged: {error}") from error
    if found != (header.width, header.height):
        raise ImageError(
            f"the {header.format} picture gives two sizes: {header.width}x{header.height} in its header, "
            f"{found[0]}x{found[1]} to the decoder"
        )
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        image.load()  # a caller's image may be opened and not yet read
        if image.mode == "RGB":
            return image
        if "transparency" in image.info:
            # Only alpha could keep it, and for some palettes Pillow warns that it is lost.
            image = image.copy()
            del image.info["transparency"]
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # as in _decode
        raise ImageError(f"the picture (mode {image.mode}) can't be made RGB: {error}") from error
