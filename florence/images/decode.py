"""Bytes, paths and PIL images to RGB pictures.

The format is recognised by the bytes. Limits on bytes, pixels and frames are checked against the header
before a pixel is decoded. A `seen.View` says which frame of an animation or page of a document is decoded,
and how other modes become RGB. PDF pages are rendered by `pdf_process`.

No setting of Pillow is changed, and no warning of Pillow's is emitted, in any thread.

Knows nothing about tensors, tasks or HTTP. Not covered: URLs, formats other than `headers.FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from florence.errors import ImageError, ImageTooLarge
from florence.images.files import read_file
from florence.images.header import HEIF_FORMATS, Header
from florence.images.headers import read_header
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.pdf import is_pdf
from florence.images.pdf_process import render_page_isolated
from florence.images.seen import ORIGINAL, Values, View, flatten, orientation_of, to_srgb, values_of

# The transposition for each EXIF orientation (CIPA DC-008, tag 0x0112); 1 is "as stored".
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


REFUSED_PDF = (
    "a service reads no PDF: `florence run`, `florence bulk` and the library render its pages, or send them "
    "as pictures"
)
RenderPage = Callable[[bytes, int, ImageLimits], bytes]
"""Renders a PDF's page, as `pdf.render_page` does."""

MAX_PASSES = 10
"""Most passes over the pixels for a picture of the largest allowed size; smaller pictures may have
proportionally more."""


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, view: View = ORIGINAL) -> Image.Image:
    """Decode a picture, or the frame or page that `view` names: RGB, with the EXIF orientation applied.

    Raises `ImageTooLarge` above a limit, `ImageError` for bytes that are empty, truncated or not a picture in
    a known format.
    """
    data, view = as_picture(data, limits, view)
    header = inspect(data, limits, view)
    image, _ = decode(header, view)
    return image if view.original else to_srgb(image, header.profile)


def as_picture(
    data: bytes, limits: ImageLimits, view: View, render: RenderPage = render_page_isolated
) -> tuple[bytes, View]:
    """The same bytes and view; for a PDF, the page that the view names, rendered, and a view of that.

    Raises `ImageError` for a PDF that can't be read, or where PDFs are not accepted (`limits.pdf_dpi` 0)."""
    check_bytes(len(data), limits)
    if not is_pdf(data):
        return data, view
    if view.frame is not None:
        raise ImageError("a PDF has pages, not frames: leave frame out")
    if not limits.pdf_dpi:
        raise ImageError(REFUSED_PDF)
    return render(data, view.page or 1, limits), replace(view, page=None)


def inspect(data: bytes, limits: ImageLimits, view: View = ORIGINAL) -> Header:
    """The header of an encoded picture that is within the limits; no pixel is decoded.

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
    allowed = MAX_PASSES * limits.max_pixels // header.pass_cost
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
    """The header's picture with the EXIF orientation applied, and the full picture's width and height (after
    orientation). RGB with `view.original`, else in one of the modes that `seen.to_srgb` takes.

    `at_least`: width and height; a JPEG is decoded at a half, a quarter or an eighth of its size if both
    sides stay at least this long. None: at full size.
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
    """A picture as RGB: a PIL image, or bytes or the file at a path through `open_image`. With
    `view.original` the orientation of a PIL image is not applied.

    Raises `ImageError` and `ImageTooLarge`.
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
    turn = _TURNS.get(orientation_of(image))  # after loading: Pillow applies a TIFF's orientation itself
    return seen if turn is None else seen.transpose(turn)


def encoded(image: object, limits: ImageLimits) -> bytes:
    """The bytes of an encoded picture, given as bytes or as a path.

    Raises `ImageError` for anything else and for files that can't be read, `ImageTooLarge` above the limit.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        check_bytes(len(image), limits)  # before a copy is made
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return read_file(os.fspath(image), limits.max_bytes)
    raise ImageError(f"a picture is given as a PIL image, bytes or a path, not as {type(image).__name__}")


def check_bytes(count: int, limits: ImageLimits) -> None:
    """Raise `ImageError` for an empty file, `ImageTooLarge` for one with too many bytes."""
    if count == 0:
        raise ImageError("the picture is empty: it has 0 bytes")
    if count > limits.max_bytes:
        raise ImageTooLarge(
            f"the picture has {count} bytes; up to {limits.max_bytes} are allowed (FLORENCE_MAX_IMAGE_BYTES)"
        )


def _check_place(header: Header, view: View) -> None:
    """Raise `ImageError` where the view's frame or page does not exist."""
    kind, other = ("page", "frame") if header.format == "TIFF" else ("frame", "page")
    number = getattr(view, kind) or 1
    if (getattr(view, other) or 1) > 1:
        raise ImageError(f"the {header.format} picture has {kind}s, not {other}s: leave {other} out")
    if number > header.frames and header.format not in HEIF_FORMATS:  # their decoder checks this
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


def _open(header: Header) -> Image.Image:
    if header.format != "HEIF":
        return Image.open(BytesIO(header.data), formats=[header.format])
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            "HEIC pictures are read where pillow-heif is installed: pip install pillow-heif"
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
    """The picture as stored, its full width and height, and its orientation."""
    values, orientation = Values(), header.orientation
    try:
        image = _open(header)
        if header.frame > 1:
            _seek(image, header)
        found = image.size
        fits = found == (header.width, header.height)
        if header.format in HEIF_FORMATS:  # the decoder may turn and crop it
            fits = found[0] * found[1] <= header.width * header.height
            orientation = orientation_of(image)
        if fits:
            if at_least is not None:
                image.draft(None, at_least)  # only has an effect for a JPEG
            values = values_of(image)
            image.load()
    except (MemoryError, ImageError):
        raise
    except UnidentifiedImageError as error:  # its message names a file object
        wrong = f"has {header.stored}, which is not read" if header.stored else "has a damaged header"
        raise ImageError(f"the {header.format} picture {wrong}") from error
    except Exception as error:  # Pillow raises nearly any type for malicious bytes
        raise ImageError(f"the {header.format} picture is cut short or damaged: {error}") from error
    if not fits:
        raise ImageError(
            f"the {header.format} picture gives two sizes: {header.width}x{header.height} in its header, "
            f"{found[0]}x{found[1]} to the decoder"
        )
    return _flat(image, view, values), found, orientation


def _flat(image: Image.Image, view: View, values: Values) -> Image.Image:
    """RGB with `view.original`, else in a mode that `to_srgb` takes. `values`: as in `flatten`."""
    try:
        return _to_rgb(image) if view.original else flatten(image, view.background, values)
    except MemoryError:
        raise
    except Exception as error:  # as in _decode
        raise ImageError(f"the picture (mode {image.mode}) can't be made RGB: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # a caller's image may be opened but not loaded yet
    if image.mode == "RGB":
        return image
    if "transparency" in image.info:
        # RGB can't keep transparency, and for some palettes Pillow would warn that it is lost.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")
