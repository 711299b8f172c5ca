"""Bytes, paths and PIL images to RGB pictures.

The format is told by the bytes. Limits on bytes, pixels and frames are checked against the header before a
pixel is decoded. Which frame of an animation or page of a document is taken, and how other modes become RGB,
is said by a `seen.View`. Pages of PDFs are rendered `apart`.

Pillow is left as it is found: no setting of it is changed, and none of its warnings comes out, in any thread.

Knows nothing about tensors, tasks or HTTP. Does not cover: URLs, formats beside `headers.FORMATS`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from florence.errors import ImageError, ImageTooLarge
from florence.images.apart import render_page_apart
from florence.images.files import unreadable
from florence.images.header import HEIF_FORMATS, Header
from florence.images.headers import read_header
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.pdf import is_pdf
from florence.images.seen import ORIGINAL, Values, View, flatten, orientation_of, to_srgb, values_of

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
_SIDEWAYS = frozenset((5, 6, 7, 8))  # turns that swap width and height


MOST_PASSES = 10
"""Scans of the largest picture that is allowed; a smaller one may have as many more."""


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, view: View = ORIGINAL) -> Image.Image:
    """An encoded picture, or the frame or page of one that the view names: RGB, turned as its EXIF
    orientation says.

    Raises ImageTooLarge above a limit, ImageError for bytes that are empty, cut short or no picture in a
    known format.
    """
    data, view = as_picture(data, limits, view)
    header = inspect(data, limits, view)
    image, _ = decode(header, view)
    return image if view.original else to_srgb(image, header.profile)


def as_picture(data: bytes, limits: ImageLimits, view: View) -> tuple[bytes, View]:
    """The bytes as they are; of a PDF: the page that the view names, rendered `apart`, and a view of that.

    Raises ImageError for a PDF that can't be read, or is not to be (`limits.pdf_dpi`)."""
    check_bytes(len(data), limits)
    if not is_pdf(data):
        return data, view
    if view.frame is not None:
        raise ImageError("a PDF has pages, not frames: leave frame out")
    return render_page_apart(data, view.page or 1, limits), replace(view, page=None)


def inspect(data: bytes, limits: ImageLimits, view: View = ORIGINAL) -> Header:
    """The header of an encoded picture that is within the limits; none of its pixels is decoded.

    Raises as `open_image`.
    """
    check_bytes(len(data), limits)
    header = read_header(data, limits.max_frames, view.page or view.frame or 1)
    _check_pixels(header.width, header.height, limits)
    if header.frames > limits.max_frames:
        raise ImageTooLarge(
            f"the picture has more than the {limits.max_frames} frames that are allowed "
            "(FLORENCE_MAX_IMAGE_FRAMES)"
        )
    _check_place(header, view)
    pixels = header.width * header.height
    allowed = MOST_PASSES * limits.max_pixels // header.pass_cost
    if header.passes * pixels > allowed:
        name = "frame" if header.frame > 1 else "part" if header.format in HEIF_FORMATS else "scan"
        raise ImageTooLarge(
            f"the {header.format} picture has {header.passes} {name}{'s' * (header.passes != 1)} of {pixels} "
            f"pixels to decode; up to {allowed} pixels are decoded in all of them together"
        )
    return header


def decode(
    header: Header, view: View, at_least: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture that the header is of, turned as its EXIF orientation says; and the (turned) original's
    width and height. RGB in the original's view, else in one of the modes that `seen.to_srgb` takes.

    With `at_least`, a width and a height, a JPEG is decoded at a half, a quarter or an eighth of its size
    where both of its sides stay at least so long.
    """
    image, (width, height), orientation = _decode(header, view, at_least)
    size = (height, width) if orientation in _SIDEWAYS else (width, height)
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn), size


def load_image(
    image: Image.Image | bytes | str | os.PathLike[str],
    limits: ImageLimits = DEFAULT_LIMITS,
    view: View = ORIGINAL,
) -> Image.Image:
    """A picture as RGB: a PIL image, or bytes and the file at a path through `open_image`. In the original's
    view a PIL image is not turned.

    Raises ImageError and ImageTooLarge.
    """
    if not isinstance(image, Image.Image):
        return open_image(encoded(image, limits), limits, view)
    _check_pixels(*image.size, limits)
    if view.frame or view.page:
        raise ImageError("a PIL picture is one frame already, chosen by its `seek`: leave frame and page out")
    if view.original:
        return _flat(image, view, Values())
    profile = image.info.get("icc_profile")
    seen = to_srgb(_flat(image, view, values_of(image)), profile if isinstance(profile, bytes) else b"")
    turn = _TURNS.get(orientation_of(image))  # now that it is loaded: Pillow turns TIFFs itself
    return seen if turn is None else seen.transpose(turn)


def encoded(image: object, limits: ImageLimits) -> bytes:
    """The bytes of an encoded picture that is given as bytes or as a file's path.

    Raises ImageError for anything else and for files that can't be read, ImageTooLarge above the limit.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        check_bytes(len(image), limits)  # before they are copied
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _read_file(os.fspath(image), limits)
    raise ImageError(f"a picture is given as a PIL image, bytes or a path, not as {type(image).__name__}")


def check_bytes(count: int, limits: ImageLimits) -> None:
    """Raise ImageError for a file without bytes, ImageTooLarge for one of too many."""
    if count == 0:
        raise ImageError("the picture is empty: it has 0 bytes")
    if count > limits.max_bytes:
        raise ImageTooLarge(
            f"the picture has {count} bytes; up to {limits.max_bytes} are allowed (FLORENCE_MAX_IMAGE_BYTES)"
        )


def _check_place(header: Header, view: View) -> None:
    """Raise ImageError where there is no such frame or page."""
    kind, other = ("page", "frame") if header.format == "TIFF" else ("frame", "page")
    number = getattr(view, kind) or 1
    if (getattr(view, other) or 1) > 1:
        raise ImageError(f"the {header.format} picture has {kind}s, not {other}s: leave {other} out")
    if number > header.frames and header.format not in HEIF_FORMATS:  # their decoder tells
        raise ImageError(
            f"the {header.format} picture has {header.frames} {kind}{'s' * (header.frames != 1)}; "
            f"{kind} must be from 1 to {header.frames}, got {number}"
        )


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture has no pixels: its size is {width}x{height}")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the picture has {width}x{height} = {width * height} pixels; "
            f"up to {limits.max_pixels} are allowed (FLORENCE_MAX_IMAGE_PIXELS)"
        )
    if max(width, height) > limits.max_side:
        raise ImageTooLarge(
            f"the picture is {width}x{height}; up to {limits.max_side} pixels a side are allowed "
            "(FLORENCE_MAX_IMAGE_SIDE)"
        )


def _read_file(path: str, limits: ImageLimits) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise unreadable(path, error) from error
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the picture {path!r} has more than the {limits.max_bytes} bytes allowed")
    return data


def _open(header: Header) -> Image.Image:
    if header.format != "HEIF":
        return Image.open(BytesIO(header.data), formats=[header.format])
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            "HEIC pictures are read where pillow-heif is installed: pip install 'florence2-server[heic]'"
        ) from None
    made: Image.Image = HeifImageFile(BytesIO(header.data))  # type: ignore[no-untyped-call]
    return made


def _seek(image: Image.Image, header: Header) -> None:
    try:
        image.seek(header.frame - 1)
    except EOFError:
        count = getattr(image, "n_frames", 1)
        raise ImageError(
            f"the {header.format} picture has {count} frame{'s' * (count != 1)} that can be read; frame must "
            f"be from 1 to {count}, got {header.frame}"
        ) from None


def _decode(
    header: Header, view: View, at_least: tuple[int, int] | None
) -> tuple[Image.Image, tuple[int, int], int]:
    """The picture as it is stored, its whole width and height, and its orientation."""
    values, orientation = Values(), header.orientation
    try:
        image = _open(header)
        if header.frame > 1:
            _seek(image, header)
        found = image.size
        fits = found == (header.width, header.height)
        if header.format in HEIF_FORMATS:  # which may be turned and cropped
            fits = found[0] * found[1] <= header.width * header.height
            orientation = orientation_of(image)
        if fits:
            if at_least is not None:
                image.draft(None, at_least)  # does nothing but for a JPEG
            values = values_of(image)
            image.load()
    except (MemoryError, ImageError):
        raise
    except UnidentifiedImageError as error:  # its text is of a file object
        wrong = f"has {header.stored}, which is not read" if header.stored else "has a damaged header"
        raise ImageError(f"the {header.format} picture {wrong}") from error
    except Exception as error:  # Pillow raises nearly any type for hostile bytes
        raise ImageError(f"the {header.format} picture is cut short or damaged: {error}") from error
    if not fits:
        raise ImageError(
            f"the {header.format} picture gives two sizes: {header.width}x{header.height} in its header, "
            f"{found[0]}x{found[1]} to the decoder"
        )
    return _flat(image, view, values), found, orientation


def _flat(image: Image.Image, view: View, values: Values) -> Image.Image:
    """RGB in the original's view; else in a mode that `to_srgb` takes. `values`: as in `flatten`."""
    try:
        return _to_rgb(image) if view.original else flatten(image, view.background, values)
    except MemoryError:
        raise
    except Exception as error:  # as in _decode
        raise ImageError(f"the picture (mode {image.mode}) can't be made RGB: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # a caller's image may be opened and not yet read
    if image.mode == "RGB":
        return image
    if "transparency" in image.info:
        # Only alpha could keep it, and for some palettes Pillow warns that it is lost.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")
