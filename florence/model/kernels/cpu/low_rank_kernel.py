"""The kernel of low-rank sums on a CPU, compiled by numba.

It is a C function whose only argument is the address of a `LowRankJob`. A task is a block of rows with one
pair of factors: the product with `down` stays in the thread's working memory, in float32, and its product
with `up` is added to the output panel by panel. Every thread takes tasks until none is left. Nothing here
allocates, raises or holds the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import carray

from florence.model.kernels.cpu.openmp import NEXT_TASK, NEXT_THREAD, NUMBER_BYTES
from florence.model.kernels.cpu.panels import BLOCK_ROWS, RANKS, Panels
from florence.model.kernels.cpu.vectors import (
    FLOAT_BYTES,
    Operation,
    as_pointer,
    compiled,
    move_bytes,
    take_next,
)

NUMBERS = 3
"""Numbers in a row of a table. For a block: its slot, its first row, and its number of rows. For a slot: the
addresses of `down` and `up`, and the rank, 0 without factors."""


class LowRankJob(NamedTuple):
    """One call, after HEAD: addresses, sizes, and strides in bytes."""

    blocks: int
    block_table: int  # int64 [blocks, NUMBERS]
    slot_table: int  # int64 [slots, NUMBERS]
    splits: int  # tasks of a block, each with some of the panels
    inner: int
    outputs: int
    panels: int
    states: int
    state_row: int
    output: int
    output_row: int
    wide: int  # whether the output is float32 whatever the states are


def scratch_bytes(panels: Panels, rank: int) -> int:
    """Working memory of a thread, in bytes, rounded up to whole cache lines: a block's product with `down`,
    and one panel of its output."""
    numbers = BLOCK_ROWS * (-(-rank // RANKS) * RANKS + panels.width)
    return numbers * FLOAT_BYTES


def make_work(panels: Panels, itemsize: int) -> Callable[[Any], None]:
    """The function that each thread runs on a job."""
    shrink, expand = _make_shrink(panels, itemsize), _make_expand(panels, itemsize)
    take, pointer, size = take_next(), as_pointer(), NUMBERS * NUMBER_BYTES

    def work(address: Any) -> None:
        job = carray(address, 1)[0]
        scratch = job.scratch + take(job.address + NEXT_THREAD) * job.scratch_bytes
        task = take(job.address + NEXT_TASK)
        while task < job.blocks * job.splits:
            block, split = task // job.splits, task % job.splits
            slot, first, rows = carray(pointer(job.block_table + block * size), 3, np.int64)
            down, up, rank = carray(pointer(job.slot_table + slot * size), 3, np.int64)
            if rank:
                shrink(job, first, rows, rank, down, scratch)
                for panel in range(job.panels * split // job.splits, job.panels * (split + 1) // job.splits):
                    expand(job, panel, first, rows, rank, up, scratch)
            task = take(job.address + NEXT_TASK)

    return work


def _make_shrink(panels: Panels, itemsize: int) -> Operation:
    """The products of a block's rows with `down` [rank, inner], to [rank, BLOCK_ROWS]."""
    largest, middle, _ = panels.tiles
    dot_largest, dot_middle, dot_one = (panels.dots(rows) for rows in panels.tiles)

    def shrink(job: Any, first: int, rows: int, rank: int, down: int, scratch: int) -> None:
        row = 0
        while row < rows:
            states = job.states + (first + row) * job.state_row
            left = rows - row
            step = largest if left >= largest else middle if left >= middle else 1
            for place in range(0, rank, RANKS):
                factors = down + place * job.inner * itemsize
                there = scratch + (place * BLOCK_ROWS + row) * FLOAT_BYTES
                if step == largest:
                    dot_largest(states, job.state_row, factors, job.inner, there)
                elif step == middle:
                    dot_middle(states, job.state_row, factors, job.inner, there)
                else:
                    dot_one(states, job.state_row, factors, job.inner, there)
            row += step

    return compiled(shrink)


def _make_expand(panels: Panels, itemsize: int) -> Operation:
    """Adds one panel's products with `up` to the output's rows; the last panel, which may be narrower, goes
    through working memory."""
    spread, spread_wide = (_make_spread(panels, wide=wide) for wide in (False, True))
    width, weight_bytes, move = panels.width, panels.weight_bytes, move_bytes()

    def expand(job: Any, panel: int, first: int, rows: int, rank: int, up: int, scratch: int) -> None:
        size = FLOAT_BYTES if job.wide else itemsize
        output = job.output + first * job.output_row + panel * width * size
        weights, count = up + panel * rank * weight_bytes, min(width, job.outputs - panel * width)
        place, stride = output, job.output_row
        if count < width:
            place = scratch + (rank + RANKS - 1) // RANKS * RANKS * BLOCK_ROWS * FLOAT_BYTES
            stride = width * FLOAT_BYTES
            for row in range(rows):
                move(output + row * job.output_row, place + row * stride, count * size)
        if job.wide:
            spread_wide(scratch, rows, rank, weights, place, stride)
        else:
            spread(scratch, rows, rank, weights, place, stride)
        if count < width:
            for row in range(rows):
                move(place + row * stride, output + row * job.output_row, count * size)

    return compiled(expand)


def _make_spread(panels: Panels, *, wide: bool) -> Operation:
    """`Panels.spread` for any number of rows."""
    largest, middle, _ = panels.tiles
    add_largest, add_middle, add_one = (panels.spread(rows, wide=wide) for rows in panels.tiles)

    def spread(numbers: int, rows: int, rank: int, weights: int, output: int, stride: int) -> None:
        row = 0
        while row < rows:
            here, there = numbers + row * FLOAT_BYTES, output + row * stride
            if rows - row >= largest:
                add_largest(here, rank, weights, there, stride)
                row += largest
            elif rows - row >= middle:
                add_middle(here, rank, weights, there, stride)
                row += middle
            else:
                add_one(here, rank, weights, there, stride)
                row += 1

    return compiled(spread)
