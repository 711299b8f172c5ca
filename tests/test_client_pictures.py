"""Pictures in each form that a caller may have: the service reads them as the library does."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import MODES, STORABLE, drawn, same, saved
from PIL import Image, ImageChops, ImageCms

from florence.bulk.items import PictureItem
from florence.client.pictures import picture_bytes, picture_name
from florence.errors import ImageError
from florence.images.decode import load_image, open_image
from florence.images.seen import ORIGINAL, SEEN, View

GREEN = View(background=(0, 255, 0))


@pytest.mark.parametrize("view", [SEEN, GREEN, ORIGINAL], ids=["seen", "on green", "original"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_loses_nothing_on_its_way(mode: str, view: View) -> None:
    """The service makes the same pixels of a PIL image, of any mode, as the library."""
    image = drawn(mode=mode)
    sent, taken = open_image(picture_bytes(image), view=view), load_image(image, view=view)
    assert ImageChops.difference(sent, taken).getbbox() is None


@pytest.mark.parametrize("format", STORABLE)
def test_a_pil_image_is_what_its_file_is(format: str) -> None:
    """An opened PIL image, loaded or not, is sent like its file: rotation, depth, transparency and colour
    profile.

    The object itself is not changed.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in STORABLE[format]:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
        extra: dict[str, Any] = {} if format in ("GIF", "BMP") else {"exif": exif}
        extra |= {"icc_profile": profile} if mode == "RGB" and extra else {}
        extra |= {"transparency": 7} if mode in ("L", "P", "I;16") and format == "PNG" else {}
        data = saved(drawn(mode=mode), format, **extra)
        wanted = open_image(data, view=SEEN)
        for loaded in (False, True):
            with Image.open(io.BytesIO(data)) as image:  # by path, Pillow corrupts a rotated TIFF
                if loaded:
                    image.load()
                before = image.info.get("exif"), image.mode
                assert same(open_image(picture_bytes(image), view=SEEN), wanted), (mode, loaded)
                assert (image.info.get("exif"), image.mode) == before


def test_inks_without_adobes_mark_stay_as_they_stand() -> None:
    """A CMYK JPEG is sent with its own inks, with Adobe's marker and without it."""
    marked = saved(drawn(mode="CMYK"), "JPEG")
    start = marked.index(b"\xff\xee")
    data = marked[:start] + marked[start + 2 + int.from_bytes(marked[start + 2 : start + 4], "big") :]
    for stored in (marked, data):
        with Image.open(io.BytesIO(stored)) as image:
            sent = picture_bytes(image)
        assert same(open_image(sent, view=SEEN), open_image(stored, view=SEEN))


def test_files_and_bytes_go_as_they_are(tmp_path: Path) -> None:
    """Files and bytes are sent unchanged."""
    data = saved(drawn(), "JPEG")
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    sources = (path, str(path), data, bytearray(data), memoryview(data))
    assert {picture_bytes(source) for source in sources} == {data}


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_arrays_are_pixels(shape: tuple[int, ...]) -> None:
    """Arrays [H, W], [H, W, 3] and [H, W, 4] of uint8, views included, are sent as pixels."""
    array = np.random.default_rng(0).integers(0, 256, (10, *shape[1:]), dtype=np.uint8)[::2]
    sent = np.asarray(open_image(picture_bytes(array)))
    wanted = np.repeat(array[..., None], 3, 2) if array.ndim == 2 else array[..., :3]
    assert np.array_equal(sent, wanted)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((5, 7), np.float32),
        np.zeros((5, 7, 2), np.uint8),
        np.zeros((3, 5, 7), np.uint8),
        np.zeros((0, 7, 3), np.uint8),
        np.zeros(5, np.uint8),
        17,
        None,
        "no/such/file.png",
        "a\0b",
        Path(),
    ],
    ids=repr,
)
def test_what_is_no_picture_is_refused_with_words(picture: Any) -> None:
    """An object that is not a picture is refused with a reason."""
    with pytest.raises(ImageError, match=r"picture|pixels"):
        picture_bytes(picture)


@pytest.mark.parametrize("read", [picture_bytes, load_image, lambda url: PictureItem(url, url).read()])
def test_a_url_is_refused_as_such(read: Callable[[str], object]) -> None:
    """A URL is refused by the client, the library and the command, quoted in full and with a remedy."""
    told = r"'http://x/y\.jpg' can't be read: it is a URL; download it.*ImageUrl"
    with pytest.raises(ImageError, match=told):
        read("http://x/y.jpg")


def test_a_damaged_file_behind_a_pil_image_is_refused(tmp_path: Path) -> None:
    """A PIL image of a damaged file is refused."""
    path = tmp_path / "cut.png"
    path.write_bytes(saved(drawn(200, 200), "PNG")[:-200])
    with Image.open(path) as image, pytest.raises(ImageError, match="can't be read"):
        picture_bytes(image)


def test_messages_name_paths_and_kinds() -> None:
    """Messages name a picture by its path or its type."""
    assert picture_name(Path("a/b.png")) == "a/b.png"
    assert picture_name(b"abc") == "<bytes>"
