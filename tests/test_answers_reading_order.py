"""Text in reading order: columns, titles above them, tables, and rotated pages."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence.answers.reading_order import lines_of
from florence.types.results import Quad

HIGH = 20.0  # height of a line in pixels
PITCH = 28.0
seeds = st.integers(0, 100_000)
turns = st.sampled_from([-6.0, -2.0, 0.0, 1.0, 4.0])


def quad_of(left: float, top: float, wide: float, high: float = HIGH) -> Quad:
    """A rectangle as a quad."""
    return left, top, left + wide, top, left + wide, top + high, left, top + high


def column(dice: random.Random, left: float, top: float, wide: float, count: int) -> list[list[Quad]]:
    """Lines of running text that fill a column, except the last line, each of one to four pieces."""
    lines = []
    for number in range(count):
        length = wide * (dice.uniform(0.9, 1.0) if number < count - 1 else dice.uniform(0.3, 1.0))
        pieces = dice.randint(1, 4)
        space = 6.0  # pixels between words
        word = (length - space * (pieces - 1)) / pieces
        at = top + number * PITCH
        lines.append([quad_of(left + place * (word + space), at, word) for place in range(pieces)])
    return lines


def turned(quad: Quad, degrees: float) -> Quad:
    """The quad on a page rotated by this angle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    numbers = [
        number
        for x, y in zip(quad[0::2], quad[1::2], strict=True)
        for number in (x * cos - y * sin, x * sin + y * cos)
    ]
    return tuple(numbers)  # type: ignore[return-value]


def check_order(dice: random.Random, lines: list[list[Quad]], degrees: float = 0.0) -> None:
    """Check that the lines of pieces are found again from the pieces in random order."""
    pieces = [turned(piece, degrees) for line in lines for piece in line]
    order = dice.sample(range(len(pieces)), len(pieces))
    found = [[order[index] for index in line] for line in lines_of([pieces[index] for index in order])]
    numbers = iter(range(len(pieces)))
    assert found == [[next(numbers) for _ in line] for line in lines]


@given(seed=seeds, count=st.integers(2, 3), degrees=turns, gutter=st.sampled_from([18.0, 30.0, 60.0]))
def test_columns_are_read_one_after_the_other(seed: int, count: int, degrees: float, gutter: float) -> None:
    """Columns are read one after the other, for aligned and shifted lines and for any rotation of
    the page."""
    dice = random.Random(seed)
    lines = list[list[Quad]]()
    for number in range(count):
        top = dice.choice([0.0, 9.0])
        lines += column(dice, number * (300 + gutter), top, 300, dice.randint(4, 14))
    check_order(dice, lines, degrees)


@given(seed=seeds, degrees=turns)
def test_a_title_stands_over_its_columns(seed: int, degrees: float) -> None:
    """A title, its three columns, a line below them and two more columns are read in this order."""
    dice = random.Random(seed)
    lines = [[quad_of(100, 0, 700, 40)]]
    rows = dice.randint(3, 9)
    for number in range(3):
        lines += column(dice, number * 330.0, 60, 300, rows)
    below = 60 + rows * PITCH + 10
    lines.append([quad_of(60, below, 800)])
    for number in range(2):
        lines += column(dice, number * 500.0, below + 40, 450, dice.randint(3, 9))
    check_order(dice, lines, degrees)


@given(seed=seeds, degrees=turns)
def test_a_table_is_read_row_by_row(seed: int, degrees: float) -> None:
    """A table of short cells, some empty, is read row by row."""
    dice = random.Random(seed)
    lines = list[list[Quad]]()
    for row in range(dice.randint(2, 12)):
        at = row * (PITCH + 6)
        cells = [place for place in range(4) if place == 0 or dice.random() < 0.8]
        lines.append(
            [quad_of(200.0 * place, at + dice.uniform(-3, 3), dice.uniform(30, 140)) for place in cells]
        )
    check_order(dice, lines, degrees)


@given(seed=seeds)
def test_a_receipt_is_read_row_by_row(seed: int) -> None:
    """A receipt with names at the left and prices far to the right is read row by row."""
    dice = random.Random(seed)
    lines = [
        [quad_of(0, row * PITCH, dice.uniform(40, 260)), quad_of(400, row * PITCH + dice.uniform(-3, 3), 50)]
        for row in range(dice.randint(2, 20))
    ]
    check_order(dice, lines)


@given(seed=seeds, count=st.integers(0, 60))
def test_each_piece_comes_once(seed: int, count: int) -> None:
    """Each piece occurs once in the lines, even if pieces overlap, have no extent or are rotated."""
    dice = random.Random(seed)
    quads = [
        turned(
            quad_of(
                dice.uniform(0, 500), dice.uniform(0, 500), dice.choice([0, 1, 30, 200]), dice.choice([0, 20])
            ),
            dice.uniform(0, 360),
        )
        for _ in range(count)
    ]
    lines = lines_of(quads)
    assert sorted(index for line in lines for index in line) == list(range(count))
    assert all(lines)


@pytest.mark.parametrize("count", [1000])
def test_a_staircase_is_read_step_by_step(count: int) -> None:
    """A staircase of a thousand pieces, with a gutter between any two, is read step by step."""
    quads = [quad_of(30.0 * index, 30.0 * index, 25.0) for index in range(count)]
    assert lines_of(quads) == [[index] for index in range(count)]
