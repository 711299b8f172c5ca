"""Pictures as a caller has them reach the service as the library would take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import MODES, drawn, saved
from PIL import Image, ImageChops

from florence.client.pictures import picture_bytes, picture_name
from florence.errors import ImageError
from florence.images.decode import load_image, open_image


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_loses_nothing_on_its_way(mode: str) -> None:
    """Of any mode: the service reads the pixels that the library makes of the same object."""
    image = drawn(mode=mode)
    sent, taken = open_image(picture_bytes(image)), load_image(image)
    assert ImageChops.difference(sent, taken).getbbox() is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])  # Pillow turns TIFF itself
def test_a_pil_image_is_not_turned_again(tmp_path: Path, kind: str) -> None:
    """Its EXIF orientation is left to the caller, as in the library; the object itself is not changed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"picture.{kind.lower()}"
    drawn().save(path, kind, exif=exif)
    with Image.open(path) as image:
        assert open_image(picture_bytes(image)).size == image.size
        assert image.getexif()[0x0112] == 6
    assert open_image(picture_bytes(path)).size == image.size[::-1]


def test_files_and_bytes_go_as_they_are(tmp_path: Path) -> None:
    data = saved(drawn(), "JPEG")
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    sources = (path, str(path), data, bytearray(data), memoryview(data))
    assert {picture_bytes(source) for source in sources} == {data}


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_arrays_are_pixels(shape: tuple[int, ...]) -> None:
    """uint8 [H, W], [H, W, 3] and [H, W, 4]; views too."""
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
    with pytest.raises(ImageError, match=r"picture|pixels"):
        picture_bytes(picture)


def test_a_url_is_refused_as_such() -> None:
    """With all its slashes, and what to do in its place: also how the service fetches it."""
    with pytest.raises(
        ImageError, match=r"'http://x/y\.jpg' can't be read: it is a URL; download it.*ImageUrl"
    ):
        picture_bytes("http://x/y.jpg")


def test_a_damaged_file_behind_a_pil_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(saved(drawn(200, 200), "PNG")[:-200])
    with Image.open(path) as image, pytest.raises(ImageError, match="can't be read"):
        picture_bytes(image)


def test_messages_name_paths_and_kinds() -> None:
    assert picture_name(Path("a/b.png")) == "a/b.png"
    assert picture_name(b"abc") == "<bytes>"
