"""AVIF and HEIC files are read, rotated, limited, and refused with a clear error where they are damaged."""

from __future__ import annotations

import io
import random
import struct
import sys
from contextlib import suppress

import numpy as np
import pillow_heif
import pytest
from heifs import derived, grid, overlay
from pictures import drawn
from PIL import Image, ImageOps
from waiting import PATIENCE_S

from florence.errors import ImageError, ImageTooLarge
from florence.images.decode import inspect, open_image
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize
from florence.images.seen import SEEN
from florence.readers.processes import ProcessReaders
from florence.readers.wire import ProcessLimits

FORMATS = ["AVIF", "HEIF"]


def encoded(image: Image.Image, format: str, orientation: int = 1) -> bytes:
    """The picture in this format, with the orientation stored in the format's own way."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    if format == "AVIF":
        image.save(file, "AVIF", quality=100, exif=exif)
    else:
        pillow_heif.from_pillow(image).save(file, quality=-1, exif=exif.tobytes())
    return file.getvalue()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pictures_come_out_as_they_went_in(format: str, mode: str) -> None:
    """A decoded picture equals the stored one within the codec's loss."""
    picture = drawn(64, 48).convert(mode)
    seen = np.asarray(open_image(encoded(picture, format), view=SEEN), int)
    assert np.abs(seen - np.asarray(picture.convert("RGB"), int)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_as_it_says(orientation: int) -> None:
    """All eight orientations of an AVIF are rotated as Pillow rotates them by EXIF."""
    turned = np.asarray(open_image(encoded(drawn(64, 48), "AVIF", orientation)), int)
    with Image.open(io.BytesIO(encoded(drawn(64, 48), "AVIF", orientation))) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"), int)
    assert np.array_equal(turned, expected)
    assert turned.shape == ((64, 48, 3) if orientation >= 5 else (48, 64, 3))


@pytest.mark.parametrize("format", FORMATS)
def test_the_header_has_the_size(format: str) -> None:
    """The header gives the size, so that limits are checked before decoding."""
    data = encoded(drawn(64, 48), format)
    header = inspect(data, DEFAULT_LIMITS)
    assert header.format == format
    assert header.width * header.height in (64 * 48, 64 * 64)  # a codec may store whole blocks
    with pytest.raises(ImageTooLarge, match="64x"):
        inspect(data, ImageLimits(max_pixels=64 * 48 - 1))


@pytest.mark.parametrize("format", FORMATS)
def test_a_header_that_says_too_little_gives_no_larger_picture(format: str) -> None:
    """A header with too small a size never gives a larger picture: libavif scales to it, and libheif's other
    size is refused."""
    data = bytearray(encoded(drawn(64, 48), format))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 4, 4)
    try:
        assert open_image(bytes(data)).size == (4, 4)
    except ImageError:
        refused = True
    else:
        refused = False
    assert refused == (format == "HEIF")


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_refused_and_nothing_else_happens(format: str) -> None:
    """Files cut at many places of the head, or with random bytes changed, give a picture or an ImageError."""
    data = encoded(drawn(64, 48), format)
    dice = random.Random(7)
    cut = [data[:length] for length in range(12, 400, 7)]
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(data))] = dice.randrange(256)
        cut.append(bytes(damaged))
    for one in cut:
        with suppress(ImageError):  # any other exception fails
            open_image(one, ImageLimits(max_pixels=100_000))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_decoding_stays_within_the_memory(format: str) -> None:
    """A reader process decodes within the memory computed from the header."""
    readers = ProcessReaders(InputSize(40, 30, 3), count=1, process_limits=ProcessLimits(slack_bytes=2**22))
    try:
        data = encoded(drawn(1500, 1000, "RGBA"), format)
        assert readers.read(data, SEEN).result(PATIENCE_S).size == (1500, 1000)
    finally:
        readers.close()


def test_heic_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pillow-heif the error names the command that installs it."""
    data = encoded(drawn(64, 48), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        open_image(data)


def test_a_film_is_not_a_picture() -> None:
    """Other ISO media files are refused as an unknown format."""
    with pytest.raises(ImageError, match="not a picture in a known format"):
        open_image(struct.pack(">I4s4s", 16, b"ftyp", b"isom") + bytes(100))


@pytest.mark.parametrize("kind", ["grid", "overlay", "a grid of grids"])
@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_what_a_picture_is_made_of_counts(format: str, kind: str) -> None:
    """A small file may use one item thousands of times, so the pixels decoded for it are limited, and counted
    from its boxes before a decoder runs."""

    def made(uses: int) -> bytes:
        if kind == "overlay":
            return overlay(format, (64, 64), uses, (64, 64))
        if kind == "grid":
            return grid(format, (64, 64), 1, uses, (64, 64))
        return derived(format, b"grid", (64, 64), (64, 64), bytes(8), uses, deep=2)

    limits = ImageLimits(max_pixels=64 * 64 * 10)  # 100 times the item's pixels are decoded
    inspect(made(5), limits)
    with pytest.raises(ImageTooLarge, match="pixels to decode"):
        inspect(made(120), limits)


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_a_small_grid_is_read(format: str) -> None:
    """A small grid is read with its tiles side by side; a phone's large grid is within the limit."""
    if format == "HEIF":  # libavif wants each tile to be an item of its own
        assert open_image(grid(format, (64, 64), 2, 3)).size == (192, 128)
    phone = inspect(grid(format, (512, 512), 12, 16), DEFAULT_LIMITS)
    assert (phone.width, phone.height, phone.passes) == (8192, 6144, 2)


def test_a_part_that_is_its_own_whole_is_refused() -> None:
    """An item that contains itself is refused."""
    data = grid("HEIF", (64, 64), 1, 1).replace(struct.pack(">HHH", 2, 1, 1), struct.pack(">HHH", 2, 1, 2))
    with pytest.raises(ImageError, match="too deep, or in a cycle"):
        inspect(data, DEFAULT_LIMITS)
