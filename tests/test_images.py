"""Pictures of every format, mode and orientation give the original's pixels. Limits: `test_image_limits`."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import MODES, STORABLE, digest, drawn, pillows, same, saved
from PIL import Image, ImageOps

from florence.checkpoint.preprocessing import read_preprocessing
from florence.errors import CheckpointError
from florence.images.decode import load_image, open_image
from florence.images.headers import read_header
from florence.images.preprocess import InputSize, resize
from florence.readers.picture import LocalReader


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """Make each warning of Pillow fail the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def golden_images(shared: Path) -> list[dict[str, Any]]:
    """The golden inputs with the original's digests."""
    images: list[dict[str, Any]] = json.loads((shared / "goldens" / "A" / "golden.json").read_text())[
        "images"
    ]
    return images


def test_pictures_become_the_originals_pixels(shared: Path, golden_images: list[dict[str, Any]]) -> None:
    """The RGB and the 768x768 pixels of all golden inputs, given as PIL images, are the original's bit for
    bit."""
    assert len(golden_images) == 8
    for row in golden_images:
        with Image.open(shared / "goldens" / "A" / "inputs" / row["file"]) as stored:
            image = load_image(stored)
        assert digest(image) == row["rgb_sha256"], row["file"]
        pixels = resize(image, InputSize(768, 768, 3))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["resized_u8_sha256"], row["file"]


def test_bytes_are_turned_by_exif(shared: Path, golden_images: list[dict[str, Any]]) -> None:
    """Bytes and a path give the same pixels, rotated as EXIF says."""
    turned = 0
    for row in golden_images:
        path = shared / "goldens" / "A" / "inputs" / row["file"]
        expected = row.get("exif_transposed_alternative", row)["rgb_sha256"]
        turned += expected != row["rgb_sha256"]
        assert digest(open_image(path.read_bytes())) == digest(load_image(path)) == expected
    assert turned == 1


def test_pixels_fit_the_model() -> None:
    """Resized pixels are uint8 [height, width, 3], contiguous and writable (torch warns otherwise)."""
    pixels = LocalReader(InputSize(30, 20, 3)).read(drawn()).pixels
    assert (pixels.shape, pixels.dtype) == ((30, 20, 3), np.uint8)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize(
    ("format", "mode"), [(format, mode) for format, modes in STORABLE.items() for mode in modes]
)
def test_every_format_and_mode_gives_pillows_pixels(format: str, mode: str) -> None:
    """A file of any format and mode gives the pixels of Pillow's own `convert("RGB")`."""
    data = saved(drawn(mode=mode), format)
    assert same(open_image(data), pillows(data))


@pytest.mark.parametrize("mode", MODES)
def test_pil_images_of_every_mode_become_rgb(mode: str) -> None:
    """A PIL image of any mode gives Pillow's own `convert("RGB")`, and stays as it was."""
    image = drawn(mode=mode)
    before = image.tobytes()
    assert same(load_image(image), image.convert("RGB"))
    assert (image.mode, image.tobytes()) == (mode, before)


def test_transparency_as_bytes_is_dropped() -> None:
    """A palette with an alpha for each colour gives the palette's colours, without Pillow's warning."""
    image = drawn(mode="P")
    data = saved(image, "PNG", transparency=bytes(range(256)))
    assert same(open_image(data), image.convert("RGB"))
    with Image.open(io.BytesIO(data)) as lazy:
        assert same(load_image(lazy), image.convert("RGB"))
        assert "transparency" in lazy.info


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"]
)
@pytest.mark.parametrize("big", [False, True])
def test_tiff_variants(compression: str, big: bool) -> None:
    """Strips under every common compression, in TIFF and BigTIFF, give Pillow's pixels."""
    image = drawn(300, 200, "1" if compression == "group4" else "RGB")
    data = saved(image, "TIFF", compression=compression, big_tiff=big)
    assert same(open_image(data), pillows(data))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_taken(format: str) -> None:
    """The first frame of an animation or document is read, and the others have no influence."""
    first, *others = (drawn(frame=frame) for frame in range(3))
    data = saved(
        first,
        format,
        save_all=True,
        append_images=others,
        **({"lossless": True} if format == "WEBP" else {}),
    )
    assert read_header(data, 10).frames == 3
    assert same(open_image(data), pillows(data))
    if format != "GIF":
        assert same(open_image(data), first)


def exif(orientation: int) -> bytes:
    """An EXIF block with this orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_eight_orientations_are_turned(format: str, orientation: int) -> None:
    """The result is the upright picture for each of the eight EXIF orientations."""
    upright = drawn(48, 32)  # whole JPEG blocks
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    tags = Image.Exif()
    tags[0x0112] = undo
    stored = upright.copy()
    stored.info["exif"] = tags.tobytes()
    stored = ImageOps.exif_transpose(stored)
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(stored, format, exif=exif(orientation), **options)
    assert read_header(data, 1).orientation == orientation
    turned = open_image(data)
    assert turned.size == (48, 32)
    difference = np.abs(np.asarray(turned, dtype=int) - np.asarray(upright, dtype=int))
    assert difference.max() == 0 if format != "JPEG" else difference.mean() < 10


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",  # a directory behind the end
        b"MM\0*\0\0\0\x08\xff\xff",  # 65535 tags
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0",  # cut in the orientation itself
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",  # orientation 9
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_fail_the_picture(format: str, block: bytes) -> None:
    """Metadata that can't be read leave the picture as it is stored."""
    data = saved(drawn(), format, exif=b"Exif\0\0" + block)
    assert same(open_image(data), pillows(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_decoder_finds_no_exif_but_a_webps(format: str) -> None:
    """EXIF is removed before decoding, except for a WebP, whose pixels it doesn't change."""
    tags = Image.Exif()
    tags[0x010E] = "a description"
    data = saved(drawn(), format, exif=tags.tobytes(), **({"lossless": True} if format == "WEBP" else {}))
    kept = read_header(data, 1).data
    with Image.open(io.BytesIO(data)) as sent, Image.open(io.BytesIO(kept)) as decoded:
        assert sent.getexif()[0x010E] == "a description"
        assert (0x010E in decoded.getexif()) == (kept == data) == (format == "WEBP")
    assert same(open_image(data), pillows(data))


ASKED: dict[str, Any] = {
    "do_center_crop": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"height": 768, "width": 768},
}


def test_preprocessing_is_read_from_either_file(tmp_path: Path, shared: Path) -> None:
    """The original's file and the file of transformers 5 give the same values."""
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": ASKED}))
    found = read_preprocessing(tmp_path)
    assert found == read_preprocessing(shared / "goldens" / "A" / "checkpoint")
    assert (found.height, found.width, found.resample, found.rescale) == (768, 768, 3, 1 / 255)
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_resize": False}, "do_resize"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_pad": True}, "do_pad"),
        ({"resample": 9}, "resample"),
        ({"size": {"shortest_edge": 224}}, "size"),
        ({"size": {"height": 768, "width": 512}}, "expected a square"),
        ({"size": 768}, "size"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": [10**400] * 3}, "image_mean is .*, expected 3 numbers"),
        ({"rescale_factor": 10**400}, "rescale_factor is .*, expected a number"),
        ({"size": {"height": 10**400, "width": 10**400}}, "size.height is .*, expected an integer"),
        ({"image_std": [1, 0, 1]}, "image_std"),
    ],
)
def test_preprocessing_that_is_not_florence_2s_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """A preprocessing step that isn't supported, or an invalid value, is named in the error."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**ASKED, **change}))
    with pytest.raises(CheckpointError, match=message):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", "7"])
def test_unreadable_preprocessing_is_refused(tmp_path: Path, content: str | None) -> None:
    """A missing or broken file is named in the error."""
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        read_preprocessing(tmp_path)
