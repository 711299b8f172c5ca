"""Limits on pictures, checked before a pixel is decoded, and bytes that are damaged or not a picture."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import FORMATS, drawn, header_only, pillows, same, saved
from PIL import Image, ImageFile, PngImagePlugin

from florence.errors import ImageError, ImageTooLarge, SettingsError
from florence.images.decode import load_image, open_image
from florence.images.headers import read_header
from florence.images.limits import ImageLimits


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """Make each warning of Pillow fail the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("format", FORMATS)
def test_too_many_pixels_are_refused_before_decoding(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size in the header above the limit is refused, with the limit named, and Pillow is not called."""
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("decoded"))
    with pytest.raises(ImageTooLarge, match=r"16000x16000 = 256000000 pixels; up to 64000000 are allowed"):
        open_image(header_only(format, 16000, 16000))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF"])  # the others' decoders fill in
def test_a_header_that_lies_is_refused(format: str) -> None:
    """A file that claims more pixels than it holds, within the limits, is damaged."""
    with pytest.raises(ImageError, match=format):
        open_image(header_only(format, 200, 100))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF"])  # the others can't say 0
def test_a_picture_without_pixels_is_refused(format: str) -> None:
    """A width of 0 is an error, not an empty picture."""
    with pytest.raises(ImageError):
        open_image(header_only(format, 0, 100))


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    """Bytes above the limit are refused unread, from a file too."""
    data = saved(drawn())
    limits = ImageLimits(max_bytes=len(data) - 1)
    (tmp_path / "picture.png").write_bytes(data)
    for picture in (data, tmp_path / "picture.png"):
        with pytest.raises(ImageTooLarge, match=str(limits.max_bytes)):
            load_image(picture, limits)
    assert open_image(data, ImageLimits(max_bytes=len(data))).size == (37, 23)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_too_many_frames_are_refused(format: str) -> None:
    """Frames are counted in the header; one above the limit is refused, the limit itself is not."""
    frames = [drawn(frame=frame) for frame in range(4)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert open_image(data, ImageLimits(max_frames=4)).size == (37, 23)
    with pytest.raises(ImageTooLarge, match="more than the 3 frames"):
        open_image(data, ImageLimits(max_frames=3))


def test_a_tiff_whose_pages_form_a_ring_ends() -> None:
    """A page that names itself as the next is counted once."""
    data = bytearray(saved(drawn(), "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    behind = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    data[behind : behind + 4] = struct.pack("<I", first)
    assert read_header(bytes(data), 1000).frames == 1
    assert same(open_image(bytes(data)), drawn())


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_pictures_are_refused(format: str) -> None:
    """Cut anywhere in its first three quarters, a file is an ImageError, never another error or a picture."""
    data = saved(drawn(200, 150), format)
    for end in [0, 1, 7, 12, 20, 40, *range(50, len(data) * 3 // 4, max(1, len(data) // 40))]:
        with pytest.raises(ImageError):
            open_image(data[:end])


@pytest.mark.parametrize(
    "data", [b"hello, world", b"PDF-1.7", b"<svg/>", b"\0" * 100, b"RIFF\0\0\0\0WAVEfmt ", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """Other bytes are an ImageError that names the formats or the fault."""
    with pytest.raises(ImageError, match=r"PNG, JPEG, WebP.* or HEIC|JPEG"):
        open_image(data)


def test_too_many_scans_are_refused() -> None:
    """A progressive JPEG of thousands of scans, each a pass over all pixels, is not decoded."""
    data = saved(drawn(), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    scan = data[data.rindex(b"\xff\xda") : end]
    with pytest.raises(ImageError, match="scans"):
        open_image(data[:end] + scan * 200 + data[end:])
    assert open_image(data).size == (37, 23)


@settings(max_examples=60)
@given(
    format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_an_image_error(format: str, changes: list[tuple[int, int]]) -> None:
    """Bytes with random changes give a picture or an ImageError, and no warning."""
    data = bytearray(saved(drawn(), format))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        image = open_image(bytes(data), ImageLimits(max_pixels=100_000))
    except ImageError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 100_000


def test_pillow_stays_as_it_was() -> None:
    """No setting of Pillow is changed while eight threads read."""
    found = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    data = [saved(drawn(), format) for format in FORMATS] * 8
    with ThreadPoolExecutor(8) as pool:
        assert all(image.size == (37, 23) for image in pool.map(open_image, data))
    assert found == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_what_a_caller_gives_is_checked(tmp_path: Path) -> None:
    """Missing files, folders, other types and broken lazy images are ImageErrors; limits hold for PIL
    images."""
    for picture in (tmp_path / "none.png", tmp_path, "nul\0l", 7, None):
        with pytest.raises(ImageError):
            load_image(picture)  # type: ignore[arg-type]
    with pytest.raises(ImageTooLarge):
        load_image(drawn(), ImageLimits(max_pixels=100))
    with Image.open(io.BytesIO(saved(drawn(200, 150, "L"))[:-500])) as cut, pytest.raises(ImageError):
        load_image(cut)


def test_limits_have_bounds() -> None:
    """A limit of 0, or one above what Pillow decodes without warning, is a SettingsError."""
    for wrong in ({"max_bytes": 0}, {"max_pixels": -1}, {"max_frames": 0}, {"max_pixels": 89_478_486}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            ImageLimits(**wrong)
    assert Image.MAX_IMAGE_PIXELS is not None
    assert ImageLimits(max_pixels=Image.MAX_IMAGE_PIXELS).max_pixels == 89_478_485


def test_a_gif_frame_larger_than_its_screen() -> None:
    """The size of a GIF is what its first frame needs, as in Pillow, and this size is checked."""
    data = bytearray(saved(drawn(40, 30), "GIF"))
    data[6:10] = struct.pack("<HH", 4, 3)
    assert open_image(bytes(data)).size == pillows(bytes(data)).size == (40, 30)
    with pytest.raises(ImageTooLarge, match="40x30"):
        open_image(bytes(data), ImageLimits(max_pixels=1000))


def test_metadata_are_never_parsed() -> None:
    """Text that unpacks to 64 MiB costs no memory, and a broken animation chunk gives no warning."""
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text("comment", "a" * 2**26, zip=True)
    data = saved(drawn(), "PNG", pnginfo=bomb)
    chunk = b"acTL" + b"\0" * 8
    broken = data[:33] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    assert len(read_header(broken, 1).data) < 10_000
    assert same(open_image(broken), drawn())
