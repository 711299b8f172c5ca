"""Frames of animations and pages of TIFF pictures, chosen by number, equal Pillow's."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator

import pytest
from pictures import drawn, saved
from PIL import Image
from waiting import PATIENCE_S

from florence.errors import ImageError, ImageTooLarge
from florence.images.decode import MAX_PASSES, inspect, open_image
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize
from florence.images.seen import View
from florence.readers.processes import ProcessReaders
from florence.readers.wire import ProcessLimits

FRAMES = 4


def animated(name: str) -> bytes:
    """A file of four different composed frames; later GIF frames hold only what changed."""
    frames = [drawn(60, 40, frame=index) for index in range(FRAMES)]
    others = {"save_all": True, "append_images": frames[1:]}
    if name == "PNG with a still picture":
        return saved(drawn(60, 40, frame=9), "PNG", save_all=True, append_images=frames, default_image=True)
    if name == "GIF of parts":
        spots = [frames[0].convert("P")]
        for index in range(1, FRAMES):
            spot = spots[-1].copy()
            spot.paste(index, (10 * index, 5, 10 * index + 8, 20))
            spots.append(spot)
        return saved(spots[0], "GIF", save_all=True, append_images=spots[1:], transparency=0, disposal=1)
    return saved(frames[0], name, **others, **({"lossless": True} if name == "WEBP" else {}))


NAMES = ["GIF", "GIF of parts", "PNG", "PNG with a still picture", "WEBP", "AVIF", "TIFF"]


def place(name: str, number: int, *, original: bool = False) -> View:
    """The view that asks for this frame, or page of a TIFF."""
    return View(original, frame=None, page=number) if name == "TIFF" else View(original, frame=number)


def pillows_frames(data: bytes) -> Iterator[bytes]:
    """Pillow's RGB pixels of each frame, on white."""
    image = Image.open(io.BytesIO(data))
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        shown = image.convert("RGB")
        if "A" in image.getbands() or "transparency" in image.info:
            shown = Image.new("RGB", image.size, "white")
            shown.paste(image.convert("RGBA"), mask=image.convert("RGBA").getchannel("A"))
        yield shown.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_is_the_one_that_pillow_gives(name: str) -> None:
    """A frame is chosen by its number from 1; without a number it is the first; a number past the end is
    refused."""
    data = animated(name)
    wanted = list(pillows_frames(data))
    assert len(wanted) == FRAMES + (name == "PNG with a still picture")
    assert len(set(wanted)) == len(wanted)
    for number, pixels in enumerate(wanted, start=1):
        assert open_image(data, view=place(name, number)).tobytes() == pixels
    assert open_image(data, view=View()).tobytes() == wanted[0]
    with pytest.raises(ImageError, match=rf"from 1 to {len(wanted)}, got {len(wanted) + 1}"):
        open_image(data, view=place(name, len(wanted) + 1))


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_reader_processes_read_the_same_frame(name: str) -> None:
    """Reader processes give the same frames in any order, within the memory computed from the header."""
    data = animated(name)
    readers = ProcessReaders(InputSize(40, 60, 0), count=1, process_limits=ProcessLimits(slack_bytes=2**22))
    try:
        for number in (3, 1, 4):
            read = readers.read(data, place(name, number)).result(PATIENCE_S)
            assert read.pixels.tobytes() == open_image(data, view=place(name, number)).tobytes()
    finally:
        readers.close()


def test_pages_are_not_frames() -> None:
    """A page of a GIF or a frame of a TIFF is refused with the right word; number 1 of either is accepted for
    any picture."""
    with pytest.raises(ImageError, match="TIFF picture has pages, not frames: leave frame out"):
        open_image(animated("TIFF"), view=View(frame=2))
    with pytest.raises(ImageError, match="GIF picture has frames, not pages: leave page out"):
        open_image(animated("GIF"), view=View(page=2))
    with pytest.raises(ImageError, match="JPEG picture has 1 frame; frame must be from 1 to 1, got 2"):
        open_image(saved(drawn(), "JPEG"), view=View(frame=2))
    assert open_image(saved(drawn(), "JPEG"), view=View(frame=1, page=1)).size == drawn().size


def test_the_frames_before_count_as_work() -> None:
    """A late frame of large pictures is refused before decoding, since all before it are decoded too."""
    data = animated("GIF")
    assert inspect(data, ImageLimits(max_pixels=4800), View(frame=4)).passes == 4
    many = saved(
        drawn(60, 40), "GIF", save_all=True, append_images=[drawn(60, 40, frame=i) for i in range(14)]
    )
    with pytest.raises(ImageTooLarge, match="12 frames of 2400 pixels"):
        inspect(many, ImageLimits(max_pixels=2400), View(frame=12))


@pytest.mark.parametrize(("name", "scans"), [("PNG", 8), ("GIF", 4), ("WEBP", 4), ("AVIF", 1)])
def test_frames_that_are_composed_count_for_several_scans(name: str, scans: int) -> None:
    """A composed frame counts as several scans, except the first (measured: up to 15 ns a pixel for a PNG in
    Pillow)."""
    data, pixels = animated(name), 60 * 40
    enough = max(pixels, -(-3 * scans * pixels // MAX_PASSES))
    assert inspect(data, ImageLimits(max_pixels=enough), View(frame=3)).pass_cost == scans
    assert inspect(data, ImageLimits(max_pixels=pixels)).pass_cost == 1
    if enough > pixels:
        with pytest.raises(ImageTooLarge, match="3 frames of 2400 pixels"):
            inspect(data, ImageLimits(max_pixels=pixels), View(frame=3))


@pytest.mark.parametrize("compression", [1, 2])
def test_run_length_encoding_is_limited_by_what_it_costs(compression: int) -> None:
    """A large run-length encoded BMP is refused, since Pillow decodes it in Python (24 KB of line ends took
    three seconds); a small one is read."""

    def bmp(side: int, rows: bytes) -> bytes:
        bits = 8 if compression == 1 else 4
        head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, compression, 0, 0, 0, 1 << bits, 0)
        palette = bytes(4 << bits)
        start = 54 + len(palette)
        return b"BM" + struct.pack("<IHHI", 0, 0, 0, start) + head + palette + rows + b"\0\1"

    line = b"\1\1\0\0"  # one pixel, end of the line
    assert open_image(bmp(64, line * 64)).size == (64, 64)
    with pytest.raises(ImageTooLarge, match="up to 10000000 pixels are decoded"):
        open_image(bmp(6000, line * 6000))
    with pytest.raises(ImageTooLarge, match="run-length encoded"):
        open_image(bmp(3000, b"\1\1" * 5_000_000))


def test_a_pil_picture_is_one_frame() -> None:
    """A frame number for a PIL image is refused, since its own `seek` chooses the frame."""
    from florence.images.decode import load_image

    with pytest.raises(ImageError, match="chosen by its `seek`"):
        load_image(Image.open(io.BytesIO(animated("GIF"))), DEFAULT_LIMITS, View(frame=2))


def test_pages_of_a_heif_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The further pictures of a HEIF file are frames."""
    pillow_heif = pytest.importorskip("pillow_heif")
    file, made = io.BytesIO(), pillow_heif.HeifFile()
    for index in range(2):
        made.add_from_pillow(drawn(64, 48, frame=2 * index))
    made.save(file)
    first, second = (open_image(file.getvalue(), view=View(frame=number)) for number in (1, 2))
    assert first.size == second.size == (64, 48)
    assert first.tobytes() != second.tobytes()
    with pytest.raises(ImageError, match="from 1 to 2, got 3"):
        open_image(file.getvalue(), view=View(frame=3))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="pillow-heif"):
        open_image(file.getvalue(), view=View(frame=2))
