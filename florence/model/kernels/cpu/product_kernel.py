"""The kernel of products with weights on a CPU, compiled by numba.

It is a C function whose only argument is the address of a `ProductJob`. Every thread that calls it takes
tasks until none is left. A task is a group of panels of outputs for a block of rows, which the thread
converts to float32 once, into its second-level cache. Nothing here allocates, raises or holds the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import carray

from florence.model.kernels.cpu.openmp import NEXT_TASK, NEXT_THREAD
from florence.model.kernels.cpu.panels import CHUNK, LOAD, ROW_BYTES, Panels
from florence.model.kernels.cpu.vectors import FLOAT_BYTES, Operation, compiled, move_bytes, take_next

BLOCK_BYTES = 800 * 1024
"""Maximum working memory of a block, which stays in the second-level cache for all panels of a task."""

MAX_ROWS = 96
"""Maximum rows of a block."""


class ProductJob(NamedTuple):
    """One call, after HEAD: addresses, sizes, and strides in bytes."""

    rows: int
    inner: int  # inputs: elements of a row
    outputs: int
    panels: int
    block_rows: int
    group: int  # panels of a task
    states: int
    state_row: int
    weights: int
    bias: int  # float32, one for each output of each panel
    residual: int  # 0 for none
    residual_row: int
    output: int
    output_row: int
    gelu: int
    wide: int  # whether the output is float32 whatever the states are


def block_rows(panels: Panels, rows: int, inner: int) -> int:
    """Rows of a block: as many as fit into the cache, in multiples of the rows that fit into registers."""
    largest = panels.rows[0]
    fitting = BLOCK_BYTES // (-(-inner // CHUNK) * ROW_BYTES) // largest * largest
    return max(largest, min(-(-rows // largest) * largest, fitting, MAX_ROWS))


def scratch_bytes(panels: Panels, rows: int, inner: int) -> int:
    """Working memory of a thread for blocks of `rows` rows, in bytes, rounded up to whole cache lines."""
    return rows * -(-inner // CHUNK) * ROW_BYTES + (rows + 1) * panels.width * FLOAT_BYTES


def make_work(panels: Panels, itemsize: int) -> Callable[[Any], None]:
    """The function that each thread runs on a job."""
    load_block = _make_load_block(panels, itemsize)
    multiply = _make_multiply(panels, itemsize)
    take = take_next()

    def work(address: Any) -> None:
        job = carray(address, 1)[0]
        scratch = job.scratch + take(job.address + NEXT_THREAD) * job.scratch_bytes
        groups = (job.panels + job.group - 1) // job.group
        blocks = (job.rows + job.block_rows - 1) // job.block_rows
        loaded = -1
        task = take(job.address + NEXT_TASK)
        while task < blocks * groups:
            block, first = task // groups, task % groups * job.group
            row = block * job.block_rows
            rows = min(job.rows - row, job.block_rows)
            if block != loaded:
                load_block(job, row, rows, scratch)
                loaded = block
            for panel in range(first, min(first + job.group, job.panels)):
                multiply(job, panel, row, rows, scratch)
            task = take(job.address + NEXT_TASK)

    return work


def _make_load_block(panels: Panels, itemsize: int) -> Operation:
    """Loads the rows of a block as float32, chunk by chunk, padded with rows of zeros."""
    load, clear, smallest = panels.load, panels.clear, panels.rows[-1]

    def load_block(job: Any, first: int, rows: int, scratch: int) -> None:
        padded = (rows + smallest - 1) // smallest * smallest
        for row in range(padded):
            source = job.states + (first + row) * job.state_row
            for index in range(0, job.inner, LOAD):
                place = index // CHUNK * job.block_rows + row
                target = scratch + place * ROW_BYTES + index % CHUNK * FLOAT_BYTES
                if row < rows:
                    load(source + index * itemsize, target)
                else:
                    clear(target)

    return compiled(load_block)


def _make_multiply(panels: Panels, itemsize: int) -> Operation:
    """Computes one panel's outputs for a block of rows, chunk by chunk: the weights of a chunk stay in the
    first-level cache for all rows."""
    largest, middle, smallest = panels.rows
    add_largest, add_middle, add_smallest = (panels.accumulate(rows) for rows in panels.rows)
    copy, row_bytes, weight_bytes = panels.copy, panels.width * FLOAT_BYTES, panels.weight_bytes
    finish = _make_finish(panels, itemsize)

    def multiply(job: Any, panel: int, first: int, rows: int, scratch: int) -> None:
        chunks = (job.inner + CHUNK - 1) // CHUNK
        sums = scratch + chunks * job.block_rows * ROW_BYTES
        for row in range((rows + smallest - 1) // smallest * smallest):
            copy(job.bias + panel * row_bytes, sums + row * row_bytes)
        for chunk in range(chunks):
            weights = job.weights + (panel * job.inner + chunk * CHUNK) * weight_bytes
            count = min(CHUNK, job.inner - chunk * CHUNK)
            row = 0
            while row < rows:
                states = scratch + (chunk * job.block_rows + row) * ROW_BYTES
                here = sums + row * row_bytes
                if rows - row > middle:
                    add_largest(states, weights, here, count)
                    row += largest
                elif rows - row > smallest:
                    add_middle(states, weights, here, count)
                    row += middle
                else:
                    add_smallest(states, weights, here, count)
                    row += smallest
        for row in range(rows):
            finish(job, panel, first + row, sums + row * row_bytes, sums + job.block_rows * row_bytes)

    return compiled(multiply)


def _make_finish(panels: Panels, itemsize: int) -> Operation:
    """Residual, activation and rounding of one row of a panel; `spare`: working memory for two rows."""
    gelu, add, copy, store, width = panels.gelu, panels.add, panels.copy, panels.store, panels.width
    move = move_bytes()

    def finish(job: Any, panel: int, row: int, sums: int, spare: int) -> None:
        size = FLOAT_BYTES if job.wide else itemsize
        target = job.output + row * job.output_row + panel * width * size
        residual = job.residual + row * job.residual_row + panel * width * itemsize
        count = min(width, job.outputs - panel * width)
        if job.residual:
            if count < width:
                move(residual, spare, count * itemsize)
                residual = spare
            add(residual, sums)
        if job.gelu:
            gelu(sums)
        place = target if count == width else spare
        if job.wide:
            copy(sums, place)
        else:
            store(sums, place)
        if count < width:
            move(spare, target, count * size)

    return compiled(finish)
