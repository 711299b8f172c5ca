"""The memory and time that pictures may take, for one picture and for all readers together, estimated from
the header.

The pictures here need gigabytes from a few bytes if only width times height is checked.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from pictures import STORABLE, drawn, saved
from waiting import PATIENCE_S, wait_until

from florence.errors import ImageError, ImageTooLarge
from florence.images.decode import inspect
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize, memory_to_read
from florence.readers.budget import DecodeBudget
from florence.readers.processes import ProcessReaders
from florence.readers.wire import ProcessLimits

MIB = 2**20
SIZE = InputSize(768, 768, 3)
LARGE = (2100, 1500)
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    *[("JPEG", mode, {"progressive": True, "subsampling": 0}) for mode in ("L", "RGB", "CMYK")],
    ("JPEG", "RGB", {"exif": TURNED}),
    ("PNG", "RGB", {"exif": TURNED}),
    ("GIF", "P", {"interlace": 1}),
    ("WEBP", "RGB", {"lossless": True}),
    ("TIFF", "1", {"compression": "group4"}),
    *[("TIFF", mode, {"compression": "tiff_lzw"}) for mode in ("RGB", "CMYK", "I;16")],
    ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate", "tiffinfo": {278: LARGE[1]}}),  # a single strip
    ("TIFF", "RGB", {"compression": "jpeg"}),
]
"""Variants in addition to each mode that Pillow writes in a format."""


@pytest.fixture
def make() -> Iterator[Callable[..., ProcessReaders]]:
    """A function that starts reader processes, which are closed at the end."""
    made: list[ProcessReaders] = []

    def readers(count: int = 1, **options: Any) -> ProcessReaders:
        made.append(ProcessReaders(SIZE, count=count, **options))
        return made[-1]

    yield readers
    for one in made:
        one.close(drain_s=PATIENCE_S)


@pytest.mark.slow
def test_decoding_takes_no_more_than_the_header_lets_expect(make: Callable[..., ProcessReaders]) -> None:
    """Decoding any format and mode needs no more memory than the header predicts, plus 2 MiB for Python."""
    readers = make(process_limits=ProcessLimits(slack_bytes=2 * MIB))
    plain = [(format, mode, {}) for format, modes in STORABLE.items() for mode in modes]
    draw = cache(lambda mode: drawn(*LARGE, mode))
    for format, mode, options in plain + VARIANTS:
        quick = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0}}.get(format, {})
        data = saved(draw(mode), format, **quick, **options)
        try:
            assert sorted(readers.read(data).result(PATIENCE_S).size) == sorted(LARGE)
        except ImageError as error:
            pytest.fail(f"{format} {mode} {options}: {error}")


def png(width: int, height: int) -> bytes:
    """An 8-bit grey PNG of zeros, about a thousandth of its pixels in bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int, int]]) -> bytes:
    """A little-endian TIFF file with one directory; each tag has a type, a count and a value or an offset."""
    entries = [struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items())]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4 + 4096)


def tiff_of(width: int, height: int, **tags: tuple[int, int, int]) -> bytes:
    """A grey TIFF picture in one strip; `tags` by name replace or add tags."""
    names = {
        "compression": 259,
        "strips": 273,
        "samples": 277,
        "tile_width": 322,
        "tile_height": 323,
        "tiles": 324,
    }
    usual = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: 100}
    plain = {tag: (4, 1, value) for tag, value in usual.items()}
    return tiff(plain | {names[name]: entry for name, entry in tags.items()})


REFUSED: dict[str, tuple[bytes, type[ImageError], str]] = {
    "one pixel wide": (png(1, 70_000), ImageTooLarge, "1x70000; up to 65535 pixels a side"),
    "one pixel high": (png(70_000, 1), ImageTooLarge, "70000x1; up to 65535 pixels a side"),
    "a huge tile": (
        tiff_of(16, 16, tiles=(4, 1, 200), tile_width=(4, 1, 26_000), tile_height=(4, 1, 26_000)),
        ImageTooLarge,
        "tiles are of 26000x26000 pixels, the picture of 16x16",
    ),
    "a long tile": (
        tiff_of(16, 16, tiles=(4, 1, 200), tile_width=(4, 1, 16), tile_height=(4, 1, 2**31)),
        ImageTooLarge,
        "tiles are of 16x2147483648",
    ),
    "many strips": (tiff_of(8, 8, strips=(1, 70_000, 0)) + bytes(70_000), ImageTooLarge, "70000 strips"),
    "many tiles": (tiff_of(8, 8, tiles=(1, 70_000, 0)) + bytes(70_000), ImageTooLarge, "70000 tiles"),
    "an unknown compression": (tiff_of(8, 8, compression=(3, 1, 4711)), ImageError, "compression 4711.*LZW"),
    "many samples": (tiff_of(8, 8, samples=(3, 1, 60_000)), ImageError, "60000 samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hidden_costs_in_headers_are_limited(name: str) -> None:
    """Sides, tiles, strips, samples and compressions over a limit are refused by name from the header."""
    data, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as caught:
        inspect(data, DEFAULT_LIMITS)
    assert type(caught.value) is error


def test_scans_are_limited_by_what_they_cost() -> None:
    """The pixels of all scans together are limited: many scans of a small picture are read, and few of a
    large one."""
    data = saved(drawn(400, 300), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    repeated = data[:-2] + data[last:-2] * 20 + data[-2:]
    scans = repeated.count(b"\xff\xda")
    assert inspect(data, ImageLimits(max_pixels=120_000)).passes == scans - 20
    assert inspect(repeated, ImageLimits(max_pixels=12_000 * scans)).passes == scans
    with pytest.raises(ImageTooLarge, match=f"{scans} scans of 120000 pixels"):
        inspect(repeated, ImageLimits(max_pixels=12_000 * scans - 1))


def test_a_picture_that_never_fits_is_refused_by_the_settings_name(
    make: Callable[..., ProcessReaders],
) -> None:
    """A picture that needs more memory than the setting allows is refused before decoding; one that fits
    exactly is read."""
    data = png(4000, 3000)
    needed = memory_to_read(inspect(data, DEFAULT_LIMITS), SIZE, DEFAULT_LIMITS)
    assert needed > 9 * 12_000_000
    readers = make(limits=ImageLimits(decode_bytes=needed - 1))
    with pytest.raises(ImageTooLarge, match="FLORENCE_DECODE_MEMORY_BYTES") as caught:
        readers.read(data).result(PATIENCE_S)
    assert caught.value.status == 413
    assert make(limits=ImageLimits(decode_bytes=needed)).read(data).result(PATIENCE_S).size == (4000, 3000)


def test_readers_together_stay_within_the_memory() -> None:
    """Threads with random needs never hold more than the budget, and each of them is served."""
    budget, most, done = DecodeBudget(100), [0], []

    def read(need: int) -> None:
        with budget.hold(need):
            most[0] = max(most[0], budget.used)
        done.append(need)

    needs = [1, 100, 30, 60, 45, 99, 2, 3, 50, 51] * 20
    threads = [threading.Thread(target=read, args=(need,)) for need in needs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(done) == sorted(needs)
    assert most[0] <= 100
    assert budget.used == 0


def test_a_large_picture_is_not_overtaken_for_ever() -> None:
    """Memory is given in the order of the requests."""
    budget, order = DecodeBudget(10), []

    def read(need: int) -> None:
        with budget.hold(need):
            order.append(need)

    with budget.hold(5):
        large = threading.Thread(target=read, args=(9,))
        large.start()
        wait_until(lambda: len(budget.asking) == 1)
        small = threading.Thread(target=read, args=(4,))  # this one would fit beside the 5
        small.start()
        wait_until(lambda: len(budget.asking) == 2)
    large.join(PATIENCE_S)
    small.join(PATIENCE_S)
    assert order == [9, 4]


def test_a_need_beyond_the_total_is_an_error_of_the_caller() -> None:
    """A need beyond the whole budget is a ValueError, since it would wait for ever."""
    with pytest.raises(ValueError, match="more than there ever are"), DecodeBudget(10).hold(11):
        pass
