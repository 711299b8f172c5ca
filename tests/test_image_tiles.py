"""The positions of tiles in a picture; readers give the pixels of these tiles and decode the picture once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import drawn, saved
from PIL import Image
from waiting import PATIENCE_S

from florence.errors import ImageError, ImageTooLarge
from florence.images.decode import decode, inspect, load_image
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.preprocess import InputSize, memory_to_read, resize
from florence.images.seen import SEEN
from florence.images.tiles import Tiling
from florence.readers import picture, wire
from florence.readers.processes import ProcessReaders
from florence.readers.readers import Readers, ThreadReaders

SIZE = InputSize(40, 30, 3)
MANY = 10**6
lengths = st.integers(1, 3000)
overlaps = st.floats(0, 0.9)


@pytest.fixture(params=[ThreadReaders, ProcessReaders], scope="module")
def readers(request: pytest.FixtureRequest) -> Iterator[Readers]:
    """Readers as threads, then as processes."""
    made = request.param(SIZE, count=1)
    yield made
    made.close(drain_s=PATIENCE_S)


def overlap_of(spans: list[tuple[int, int]]) -> int:
    """The smallest overlap of two neighbours."""
    return min((a[1] - b[0] for a, b in pairwise(spans)), default=MANY)


@given(width=lengths, height=lengths, scale=st.floats(0.5, 8), overlap=st.tuples(overlaps, overlaps))
@example(1, 603, 7.53515625, (0.0, 0.0))  # a fifth of a pixel longer than a tile
def test_auto_covers_the_picture_with_the_fewest_tiles(
    width: int, height: int, scale: float, overlap: tuple[float, float]
) -> None:
    """Automatic tiles cover the picture, have the requested size or the picture's own side, overlap by the
    shares, and are the fewest possible."""
    tiling = Tiling(None, scale, overlap, MANY)
    tiles = tiling.cut((width, height), (100, 80))
    across = sorted({(left, right) for left, _, right, _ in tiles})
    down = sorted({(top, bottom) for _, top, _, bottom in tiles})
    assert tiles == [(left, top, right, bottom) for top, bottom in down for left, right in across]
    sides = ((across, width, 100 * scale), (down, height, 80 * scale))
    for (spans, length, side), share in zip(sides, overlap, strict=True):
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(abs(stop - start - min(side, length)) <= 1 for start, stop in spans)
        assert overlap_of(spans) >= share * min(side, length) - 2
        reach = side + (len(spans) - 2) * side * (1 - share)  # of one tile fewer
        assert len(spans) == 1 or reach < length


@given(
    width=st.integers(9, 3000), height=st.integers(9, 3000),
    columns=st.integers(1, 9), rows=st.integers(1, 9), overlap=overlaps,
)  # fmt: skip
def test_a_grid_has_its_columns_and_rows(
    width: int, height: int, columns: int, rows: int, overlap: float
) -> None:
    """The tiles of a grid have nearly equal sizes, cover the picture and overlap by the share."""
    tiles = Tiling((columns, rows), 1.0, (overlap, overlap), MANY).cut((width, height), (100, 100))
    assert len(tiles) == columns * rows
    across = [(left, right) for left, _, right, _ in tiles[:columns]]
    assert (across[0][0], across[-1][1]) == (0, width)
    assert tiles[-1][3] == height
    sides = {right - left for left, right in across}
    assert max(sides) - min(sides) <= 1
    assert overlap_of(across) >= overlap * min(sides) - 2


def test_more_tiles_than_are_allowed_say_what_to_change() -> None:
    """Too many tiles, or a grid too fine for the picture, are refused before decoding; the error says what to
    change."""
    header = inspect(saved(drawn(300, 200)), DEFAULT_LIMITS)
    view = replace(SEEN, tiling=Tiling(None, 1.0, (0.2, 0.2), 64))
    with pytest.raises(ImageError, match=r"13x6 = 78 tiles; up to 64 .*FLORENCE_MAX_TILES.*tile_scale"):
        memory_to_read(header, SIZE, DEFAULT_LIMITS, view)
    with pytest.raises(ImageError, match="too small for 3x9 tiles; send a smaller grid"):
        Tiling((3, 9), 1.0, (0.0, 0.0)).cut((20, 8), (40, 30))


def test_the_pixels_of_all_tiles_count_in_the_memory_that_decoding_takes() -> None:
    """The pixels of all tiles count as memory, so a picture that fits whole may be too large in tiles."""
    header = inspect(saved(drawn(300, 200)), DEFAULT_LIMITS)
    whole = memory_to_read(header, SIZE, DEFAULT_LIMITS, SEEN)
    view = replace(SEEN, tiling=Tiling((5, 4), 1.0, (0.2, 0.2)))
    assert memory_to_read(header, SIZE, DEFAULT_LIMITS, view) == whole + 20 * 40 * 30 * 3 + 4 * 71 * 59
    with pytest.raises(ImageTooLarge, match="FLORENCE_DECODE_MEMORY_BYTES"):
        memory_to_read(header, SIZE, ImageLimits(decode_bytes=whole + 1000), view)


@pytest.mark.parametrize("grid", [(3, 2), None])
@pytest.mark.parametrize("turn", [1, 6])
def test_readers_give_the_pixels_of_each_tile(
    readers: Readers, grid: tuple[int, int] | None, turn: int
) -> None:
    """A tile's pixels are the resized part of the upright picture, also for a transparent or an opened one.
    The next picture, read without tiles, is whole."""
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(drawn(110, 90, "RGBA"), "PNG", exif=exif.tobytes())
    view = replace(SEEN, tiling=Tiling(grid, 1.5, (0.3, 0.3)))
    upright = load_image(data, view=SEEN)
    for source in (data, upright):
        read = readers.read(source, view).result(PATIENCE_S)
        assert read.size == upright.size
        assert len(read.tiles) > 5
        for tile in read.tiles:
            left, top = tile.corner
            part = upright.crop((left, top, left + tile.size[0], top + tile.size[1]))
            assert np.array_equal(tile.pixels, np.asarray(resize(part, SIZE)))
        assert len({tile.digest for tile in read.tiles}) == len(read.tiles)
    whole = readers.read(data, SEEN).result(PATIENCE_S)
    assert np.array_equal(whole.pixels, np.asarray(resize(upright, SIZE)))


def test_a_picture_within_one_tile_is_not_cut(readers: Readers) -> None:
    """A picture that fits in one tile is read as without tiles."""
    view = replace(SEEN, tiling=Tiling(None, 2.0, (0.3, 0.3)))
    read, plain = (readers.read(saved(drawn()), each).result(PATIENCE_S) for each in (view, SEEN))
    assert read.tiles == ()
    assert read.digest == plain.digest


def test_a_reader_goes_on_after_a_picture_of_too_many_tiles(readers: Readers) -> None:
    """Too many tiles are an ImageError in the future, and the reader reads the next picture."""
    view = replace(SEEN, tiling=Tiling(None, 0.1, (0.9, 0.9)))
    for source in (saved(drawn()), drawn()):
        with pytest.raises(ImageError, match="FLORENCE_MAX_TILES"):
            readers.read(source, view).result(PATIENCE_S)
    assert readers.read(saved(drawn())).result(PATIENCE_S).size == (37, 23)


def test_a_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is decoded once for all its tiles."""
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("florence.images.preprocess.decode", counted)
    view = replace(SEEN, tiling=Tiling((4, 4), 1.0, (0.2, 0.2)))
    read = picture.LocalReader(SIZE).read(saved(drawn(100, 80)), view)
    assert (len(read.tiles), len(calls)) == (16, 1)


@given(
    tiling=st.none()
    | st.builds(
        Tiling,
        st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
        st.floats(0.1, 100),
        st.tuples(overlaps, overlaps),
        st.integers(1, 4096),
    )
)
def test_a_tiling_comes_to_the_other_process_as_it_is(tiling: Tiling | None) -> None:
    """A tiling is sent to the other process bit for bit, so both compute the same tiles."""
    assert wire.read_tiling(wire.pack_tiling(tiling)) == tiling


def test_tiny_pictures_have_tiles_too() -> None:
    """Each tile of a tiny picture has at least one pixel."""
    tiles = Tiling(None, 0.1, (0.9, 0.9), MANY).cut((3, 3), (4, 4))
    assert all(right > left and bottom > top for left, top, right, bottom in tiles)
