"""The kernel of low-rank sums on a CPU, compiled by numba.

It is a C function whose only argument is the address of a `LowRankJob`. A task is a block of rows with one
pair of factors: the product into the rank stays in the thread's working memory, in float32, and the one out
of it is added to the output panel by panel. Every thread takes tasks until none is left. Nothing here
allocates, raises or holds the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import carray

from florence.model.kernels.cpu.openmp import NEXT_TASK, NEXT_THREAD
from florence.model.kernels.cpu.panels import CHUNK, LOAD, RANKS, ROW_BYTES, Panels
from florence.model.kernels.cpu.product_kernel import make_sum_panel
from florence.model.kernels.cpu.vectors import (
    FLOAT_BYTES,
    Operation,
    as_pointer,
    compiled,
    move_bytes,
    take_next,
)

BLOCK_ROWS = 24
"""Most rows of a block."""

NUMBERS = 3
"""Of a block: its slot, its first row, and its rows. Of a slot: the addresses of `down` and `up`, and the
rank, 0 where it has no factors."""


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
    """Working memory of a thread, in whole cache lines."""
    return BLOCK_ROWS * -(-rank // CHUNK) * ROW_BYTES + (BLOCK_ROWS + 1) * panels.width * FLOAT_BYTES


def make_work(panels: Panels, itemsize: int) -> Callable[[Any], None]:
    """What each thread does with a job."""
    shrink, expand = _make_shrink(panels, itemsize), _make_expand(panels, itemsize)
    take, pointer, size = take_next(), as_pointer(), NUMBERS * 8

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
    """The products of a block's rows with `down` [rank, inner], chunk by chunk of the rank, and rows of zeros
    after the last one."""
    most, middle = panels.dot_rows
    dot_most, dot_middle, dot_one = (panels.dots(rows) for rows in (most, middle, 1))
    clear, least = panels.clear, panels.rows[-1]

    def shrink(job: Any, first: int, rows: int, rank: int, down: int, scratch: int) -> None:
        row = 0
        while row < rows:
            states = job.states + (first + row) * job.state_row
            left = rows - row
            step = most if left >= most else middle if left >= middle else 1
            for place in range(0, rank, RANKS):
                factors = down + place * job.inner * itemsize
                there = (place // CHUNK * BLOCK_ROWS + row) * ROW_BYTES + place % CHUNK * FLOAT_BYTES
                if step == most:
                    dot_most(states, job.state_row, factors, job.inner, scratch + there)
                elif step == middle:
                    dot_middle(states, job.state_row, factors, job.inner, scratch + there)
                else:
                    dot_one(states, job.state_row, factors, job.inner, scratch + there)
            row += step
        for row in range(rows, (rows + least - 1) // least * least):
            for place in range(0, rank, LOAD):
                clear(scratch + (place // CHUNK * BLOCK_ROWS + row) * ROW_BYTES + place % CHUNK * FLOAT_BYTES)

    return compiled(shrink)


def _make_expand(panels: Panels, itemsize: int) -> Operation:
    """Adds one panel's products with `up` to the output's rows."""
    clear, sum_panel, finish = panels.clear, make_sum_panel(panels), _make_finish(panels, itemsize)
    width, weight_bytes = panels.width, panels.weight_bytes

    def expand(job: Any, panel: int, first: int, rows: int, rank: int, up: int, scratch: int) -> None:
        sums = scratch + (rank + CHUNK - 1) // CHUNK * BLOCK_ROWS * ROW_BYTES
        for place in range(0, BLOCK_ROWS * width, LOAD):
            clear(sums + place * FLOAT_BYTES)
        sum_panel(scratch, BLOCK_ROWS, rows, rank, up + panel * rank * weight_bytes, sums)
        for row in range(rows):
            here = sums + row * width * FLOAT_BYTES
            finish(job, panel, first + row, here, sums + BLOCK_ROWS * width * FLOAT_BYTES)

    return compiled(expand)


def _make_finish(panels: Panels, itemsize: int) -> Operation:
    """Adds one row of a panel to the output; `spare`: working memory of a row."""
    add, add_wide, copy, store, width = panels.add, panels.add_wide, panels.copy, panels.store, panels.width
    move = move_bytes()

    def finish(job: Any, panel: int, row: int, sums: int, spare: int) -> None:
        size = FLOAT_BYTES if job.wide else itemsize
        target = job.output + row * job.output_row + panel * width * size
        count = min(width, job.outputs - panel * width)
        place = target if count == width else spare
        if count < width:
            move(target, spare, count * size)
        if job.wide:
            add_wide(place, sums)
            copy(sums, place)
        else:
            add(place, sums)
            store(sums, place)
        if count < width:
            move(spare, target, count * size)

    return compiled(finish)
