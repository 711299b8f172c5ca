"""Pictures as a viewer shows them, where the original's `convert("RGB")` differs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import MODES, STORABLE, drawn, saved, tiff_of
from PIL import Image, ImageCms, ImageOps

from florence.client.pictures import picture_bytes
from florence.errors import ImageError
from florence.images.decode import load_image, open_image
from florence.images.limits import DEFAULT_LIMITS
from florence.images.preprocess import InputSize
from florence.images.seen import ORIGINAL, SEEN, View
from florence.readers.picture import LocalReader
from florence.readers.processes import ProcessReaders
from florence.runtime.run_options import own_picture

GREEN = View(background=(0, 255, 0))
RAMP = np.arange(256).reshape(16, 16)


def opened(data: bytes, view: View = SEEN) -> NDArray[np.int64]:
    """The pixels of an encoded picture, [height, width, 3]."""
    return np.asarray(open_image(data, DEFAULT_LIMITS, view), np.int64)


def stored(values: NDArray[np.generic], format: str = "TIFF") -> bytes:
    """The values as the bytes of a picture file."""
    return saved(Image.fromarray(values), format)


@pytest.mark.parametrize("format", STORABLE)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr"])
def test_ordinary_pictures_are_the_same_in_both_views(format: str, mode: str) -> None:
    """An opaque picture of 8 bits without a profile is the same in both views, bit for bit."""
    if mode not in STORABLE[format]:
        pytest.skip(f"Pillow writes no {format} of mode {mode}")
    data = saved(drawn(mode=mode), format)
    assert np.array_equal(opened(data), opened(data, ORIGINAL))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("16 bits", lambda: stored(np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16))),
        (
            "a PNG",
            lambda: stored(np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16), "PNG"),
        ),
        ("32 bits", lambda: stored(np.linspace(-(2**31), 2**31 - 1, 256).astype(np.int32).reshape(16, 16))),
        ("0 to 1", lambda: stored(np.linspace(0, 1, 256).astype(np.float32).reshape(16, 16))),
        ("any range", lambda: stored(np.linspace(-70, 1e6, 256).astype(np.float32).reshape(16, 16))),
    ],
)
def test_more_than_8_bits_are_scaled_by_their_range(name: str, make: Callable[[], bytes]) -> None:
    """A ramp over the whole range becomes the 8-bit ramp; the original cuts it off at 255."""
    assert np.array_equal(opened(make())[..., 0], RAMP)
    assert not np.array_equal(opened(make(), ORIGINAL)[..., 0], RAMP)


def packed_in_12_bits() -> bytes:
    """A TIFF of 12-bit values, two in three bytes, as microscope cameras write them."""
    values = np.round(RAMP / 255 * 4095).astype(np.uint16)
    first, second = values[:, 0::2], values[:, 1::2]
    three = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    return tiff_of(values, bits=12, data=three.astype(np.uint8).tobytes())


STORED = {
    "8 bits with a sign": lambda: tiff_of((RAMP - 128).astype(np.int8)),
    "12 bits": packed_in_12_bits,
    "16 bits with a sign": lambda: tiff_of((RAMP * 257 - 2**15).astype(np.int16)),
    "32 bits without a sign": lambda: tiff_of((RAMP * 16843009).astype(np.uint32)),
    "32 bits with a sign": lambda: tiff_of((RAMP * 16843009 - 2**31).astype(np.int32)),
    "8 bits, 0 is white": lambda: tiff_of((255 - RAMP).astype(np.uint8), photometric=0),
    "16 bits, 0 is white": lambda: tiff_of(((255 - RAMP) * 257).astype(np.uint16), photometric=0),
    "floats, 0 is white": lambda: tiff_of((1 - RAMP / 255).astype(np.float32), photometric=0),
}


@pytest.mark.parametrize("name", STORED)
def test_every_way_to_store_a_value_shows_the_same_ramp(name: str) -> None:
    """Every storage format shows the same ramp: from a file, from a PIL picture before and after loading,
    and sent by the client. Pillow's mode alone does not distinguish these formats."""
    data = STORED[name]()
    assert np.array_equal(opened(data)[..., 0], RAMP)
    for loaded in (False, True):
        with Image.open(io.BytesIO(data)) as picture:
            if loaded:
                picture.load()
            assert np.array_equal(np.asarray(load_image(picture, view=SEEN))[..., 0], RAMP)
            assert np.array_equal(opened(picture_bytes(picture))[..., 0], RAMP)


@pytest.mark.parametrize(
    ("values", "samples"),
    [
        (np.zeros((4, 4, 3), np.float32), "3 floating-point samples of 32 bits a pixel"),
        (np.zeros((4, 4), np.float64), "1 floating-point sample of 64 bits"),
        (np.zeros((4, 4, 3), np.int16), "3 signed samples of 16 bits"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(values: NDArray[np.generic], samples: str) -> None:
    """An unsupported sample format is named in the error, which does not call the file damaged."""
    with pytest.raises(ImageError, match=f"the TIFF picture has {samples}.*not read"):
        opened(tiff_of(values, photometric=2 if values.ndim == 3 else 1))


@pytest.mark.parametrize("value", [0.25, 7.0, -3.0])
def test_a_flat_picture_of_floats_is_read(value: float) -> None:
    """A picture of equal floats is read without a division by zero."""
    assert len(np.unique(opened(stored(np.full((4, 4), value, np.float32))))) == 1


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_floats_that_are_not_finite_are_refused_by_name(value: float) -> None:
    """A picture with infinity or NaN anywhere is refused: infinity would scale all other values to black,
    and NaN has no brightness."""
    for place in range(6):
        values = np.linspace(0, 1, 6, dtype=np.float32)
        values[place] = value
        with pytest.raises(ImageError, match="not finite"):
            opened(stored(values.reshape(2, 3)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_shows_the_background(mode: str) -> None:
    """Every kind of PNG transparency equals Pillow's own compositing, on white and on a colour."""
    picture = drawn(mode="RGB" if mode in ("RGB", "RGBA") else "L")
    alpha = drawn(mode="L").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if mode in ("RGBA", "LA"):
        picture.putalpha(alpha)
        data = saved(picture)
    elif mode == "P":
        picture = drawn(mode="P")
        data = saved(picture, transparency=bytes(range(0, 256)))
    else:
        key = picture.getpixel((5, 5))
        data = saved(picture, transparency=key)
    layered = Image.open(io.BytesIO(data)).convert("RGBA")
    for view in (SEEN, GREEN):
        below = Image.new("RGBA", layered.size, (*view.background, 255))
        expected = np.asarray(Image.alpha_composite(below, layered).convert("RGB"), np.int64)
        assert np.abs(opened(data, view) - expected).max() <= 1


def test_a_transparent_value_of_16_bits_shows_the_background() -> None:
    """Only the transparent value shows the background; its neighbours don't."""
    values = np.array([[0, 999, 1000], [1001, 30_000, 65_535]], np.uint16)
    data = saved(Image.fromarray(values), transparency=1000)
    assert opened(data, GREEN)[0, 2].tolist() == [0, 255, 0]
    assert opened(data, GREEN)[..., 0].tolist() == [[0, 4, 0], [4, 117, 255]]


def profile(kind: str) -> bytes:
    """The bytes of one of lcms's own profiles."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profiles_are_converted_to_srgb(format: str, shared: Path) -> None:
    """A profile with exchanged colours is applied in every format that can hold one."""
    swapped = exchanged_profile()
    picture = Image.new("RGB", (16, 16), (200, 30, 30))
    data = saved(picture, format, icc_profile=swapped)
    red, green, _ = opened(data)[8, 8]
    assert green > 150 > 100 > red
    assert opened(data, ORIGINAL)[8, 8, 0] > 150


def exchanged_profile() -> bytes:
    """The sRGB profile with the tags of red and green exchanged."""
    plain = bytearray(profile("sRGB"))
    count = int.from_bytes(plain[128:132], "big")
    for index in range(count):
        at = 132 + 12 * index
        name = bytes(plain[at : at + 4])
        plain[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    return bytes(plain)


@pytest.mark.parametrize("broken", [b"", b"nothing", exchanged_profile()[:200]])
def test_a_broken_profile_fails_nothing(broken: bytes) -> None:
    """A picture with a broken profile is read as without a profile."""
    picture = drawn()
    assert np.array_equal(opened(saved(picture, icc_profile=broken)), opened(saved(picture)))


def test_a_profile_of_another_mode_is_ignored() -> None:
    """An RGB profile on a grey picture is ignored."""
    grey = drawn(mode="L")
    assert np.array_equal(opened(saved(grey, icc_profile=profile("sRGB"))), opened(saved(grey)))


def test_inks_without_adobes_mark_are_not_inverted() -> None:
    """A CMYK picture is inverted only if its file has Adobe's mark."""
    paper = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    marked = saved(paper, "JPEG")  # Pillow writes Adobe's mark, and inverts
    start = marked.index(b"\xff\xee")
    unmarked = marked[:start] + marked[start + 2 + int.from_bytes(marked[start + 2 : start + 4], "big") :]
    assert opened(marked).min() > 240
    assert opened(unmarked).max() < 15  # the same stored values, now as they stand


def test_a_picture_opened_by_the_caller_is_as_upright_as_its_path(tmp_path: Path) -> None:
    """A PIL picture and its path give the same upright picture; the original's view does not rotate a PIL
    picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "TIFF", "WEBP"):
        path = tmp_path / f"phone.{format.lower()}"
        drawn().save(path, format, exif=exif)
        with Image.open(path) as picture:
            assert np.array_equal(load_image(picture, view=SEEN), load_image(path, view=SEEN)), format
            assert load_image(picture, view=SEEN).size == (23, 37)
            # Pillow turns a TIFF when it loads it.
            assert load_image(picture, view=ORIGINAL).size == ((23, 37) if format == "TIFF" else (37, 23))
            turned = ImageOps.exif_transpose(picture)
            assert load_image(turned, view=SEEN).size == (23, 37)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_librarys_copy_is_turned_and_converted_once(tmp_path: Path, format: str) -> None:
    """Rotation and profile are not applied again to the copy that a request keeps: it gives a reader the
    same pixels as the path."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "phone"
    drawn().save(path, format, exif=exif, icc_profile=profile)
    reader = LocalReader(InputSize(40, 30, 3))
    with Image.open(path) as picture:
        kept = own_picture(picture, SEEN, DEFAULT_LIMITS)
    assert isinstance(kept, Image.Image)
    assert not kept.info
    assert reader.read(kept, SEEN).digest == reader.read(path, SEEN).digest


@pytest.mark.parametrize("mode", MODES)
def test_processes_threads_and_callers_see_the_same(mode: str) -> None:
    """Reader processes, threads and PIL pictures give the same pixels, for every mode."""
    size = InputSize(40, 30, 3)
    format = next(format for format in ("PNG", "TIFF") if mode in STORABLE[format])
    data = saved(drawn(mode=mode), format)
    local = LocalReader(size).read(data, GREEN)
    readers = ProcessReaders(size, count=1)
    try:
        assert readers.read(data, GREEN).result().digest == local.digest
    finally:
        readers.close()
    with Image.open(io.BytesIO(data)) as picture:
        assert LocalReader(size).read(picture, GREEN).digest == local.digest


def test_reported_pictures_are_seen_rightly(shared: Path) -> None:
    """A dark word on transparent equals one on white, and 16 bits are as bright as 8."""
    inputs = shared / "reports" / "inputs"
    for one, other in (("word_on_transparent.png", "word_on_white.png"), ("gray_16bit.png", "gray_8bit.png")):
        seen = [opened((inputs / name).read_bytes()) for name in (one, other)]
        assert np.abs(seen[0] - seen[1]).max() <= 1
