"""Pixels to location tokens and back, and invalid regions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence.errors import RegionError, RequestError
from florence.types.regions import (
    BINS,
    LOCATION_PATTERN,
    locations_to_pixels,
    read_image_size,
    region_text,
    region_to_locations,
)

SIZES = st.tuples(st.integers(1, 20_000), st.integers(1, 20_000))


def bins_of(locations: str) -> list[int]:
    """The four bins of a region's text, which must hold nothing else."""
    assert re.fullmatch(LOCATION_PATTERN * 4, locations)
    return [int(bin_) for bin_ in re.findall(LOCATION_PATTERN, locations)]


@st.composite
def regions(draw: st.DrawFn) -> tuple[list[float], tuple[int, int]]:
    """A region that is not empty, and the size of its picture."""
    size = draw(SIZES)
    corners = []
    for length in size:
        low, high = sorted(draw(st.tuples(st.floats(0, length), st.floats(0, length))))
        corners.append((low, high) if high > low else (0.0, float(length)))
    (x1, x2), (y1, y2) = corners
    return [x1, y1, x2, y2], size


@given(case=regions())
def test_pixels_come_back_within_one_bin(case: tuple[list[float], tuple[int, int]]) -> None:
    """From pixels to locations and back, a coordinate moves by at most one bin and stays in the picture."""
    region, size = case
    back = locations_to_pixels(bins_of(region_to_locations(region, size)), size)
    for index, (before, after) in enumerate(zip(region, back, strict=True)):
        assert abs(after - before) <= size[index % 2] / BINS
        assert 0 < after < size[index % 2]


@given(bins=st.lists(st.integers(0, BINS - 1), min_size=4, max_size=4), size=SIZES)
def test_the_middle_of_a_bin_is_in_that_bin(bins: list[int], size: tuple[int, int]) -> None:
    """From locations to pixels and back, the locations are the same, for every size of picture."""
    low_x, high_x = sorted(bins[::2])
    low_y, high_y = sorted(bins[1::2])
    ordered = [low_x, low_y, high_x, high_y]
    x1, y1, x2, y2 = locations_to_pixels(ordered, size)
    if low_x == high_x or low_y == high_y:
        with pytest.raises(RegionError, match="empty"):
            region_to_locations((x1, y1, x2, y2), size)
    else:
        assert bins_of(region_to_locations((x1, y1, x2, y2), size)) == ordered


def test_a_region_can_be_written_in_four_ways() -> None:
    """A tuple, a list, pixels as text with or without brackets, and locations give the same region."""
    locations = "<loc_52><loc_332><loc_932><loc_774>"
    same: list[str | Sequence[float]] = [
        (52, 332, 932, 774),
        [52.0, 332.9, 932.5, 774],
        "52,332,932,774",
        " [52, 332.5, 932, 7.74e2] ",
        "52 332 932 774",
        locations,
        f" {locations}\n",
    ]
    assert {region_text(region, (1000, 1000)) for region in same} == {locations}


def test_edges_belong_to_the_first_and_last_bin() -> None:
    """The whole picture is bins 0 to 999: the far edge is in the last bin."""
    assert region_text((0, 0, 640, 480), (640, 480)) == "<loc_0><loc_0><loc_999><loc_999>"


def test_thin_regions_keep_their_one_bin() -> None:
    """A region thinner than a bin becomes one bin, and such locations are accepted."""
    thin = region_text((10, 10, 10.5, 400), (5000, 5000))
    assert thin == "<loc_2><loc_2><loc_2><loc_80>"
    assert region_text(thin, (5000, 5000)) == thin


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0, 0, 641, 480), "not inside the picture, which is 640 pixels wide and 480 high"),
        ((0, -1, 64, 48), "not inside the picture"),
        ((64, 0, 64, 48), "is empty"),
        ((0, 48, 64, 40), "is empty"),
        ((0, 0, math.nan, 48), "not finite"),
        ((0, 0, math.inf, 48), "not finite"),
        ("0, 0, nan, 48", "not four numbers"),
        ("0, 0, 1e999, 48", "not finite"),
        ("1_0, 0, 64, 48", "not four numbers"),
        ((0, 0, 64), "not four numbers"),
        ((0, 0, "x", 48), "not four numbers"),
        ((0, 0, 10**400, 48), "not four numbers"),
        (17, "not four numbers"),
        ("", "not four numbers"),
        ("the car", "not four numbers"),
        ("1,2,3,4,5", "not four numbers"),
        ("1 " * 1000, "too long"),
        ("<loc_1><loc_2><loc_3>", "not four locations from <loc_0> to <loc_999>"),
        ("<loc_0><loc_0><loc_1000><loc_9>", "not four locations"),
        ("<loc_0><loc_0><loc_01><loc_9>", "not four locations"),
        ("<loc_0><loc_0><loc_٣><loc_9>", "not four locations"),
        ("<loc_0><loc_0><loc_3><loc_9> a car", "not four locations"),
        ("<loc_9><loc_0><loc_3><loc_9>", "ends before it begins"),
    ],
)
def test_wrong_regions_are_refused(region: object, message: str) -> None:
    """The error names what is wrong with a region and shows how to write one."""
    with pytest.raises(RegionError, match=re.escape(message)) as caught:
        region_text(region, (640, 480))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400


@given(text=st.text() | st.text(alphabet="<loc_>0123456789.,e- []", max_size=60))
def test_any_text_is_a_region_or_refused(text: str) -> None:
    """Text either becomes four locations or is a RegionError, never another exception."""
    try:
        locations = region_text(text, (640, 480))
    except RegionError:
        return
    assert len(bins_of(locations)) == 4


@pytest.mark.parametrize("size", [(0, 480), (640, -1), (640, math.nan), (640, math.inf), (640,), None, "ab"])
def test_wrong_image_sizes_are_refused(size: object) -> None:
    """A picture's size is two positive, finite numbers; anything else is an error."""
    with pytest.raises(RequestError, match=r"image_size must be \(width, height\)"):
        read_image_size(size)  # type: ignore[arg-type]


def test_parts_of_the_picture_are_no_pixels() -> None:
    """A region from 0 to 1 is refused, since it would give a wrong answer; the message gives it in pixels."""
    with pytest.raises(RegionError, match=r"write \[64.0, 48.0, 320.0, 240.0\]"):
        region_text([0.1, 0.1, 0.5, 0.5], (640, 480))
    assert region_text([0, 0, 1, 1], (8, 8))  # the first pixel of a tiny picture
