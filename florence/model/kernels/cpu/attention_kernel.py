"""The attention kernel of a CPU, compiled by numba.

The kernel is a C function whose only argument is the address of an `AttentionJob`. Every thread that calls it
takes heads of groups from a shared counter until none is left, so that any number of threads shares the job
evenly. A group is the query rows that attend to the same keys: a tile of 16 keys is converted to float32
once, in the first-level cache, for all of them; then the softmax of each row is computed, and the values are
added tile by tile. Nothing here allocates, raises or holds the GIL; indices out of range are counted as
faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray

from florence.model.kernels.cpu.openmp import FAULTS, NEXT_TASK, NEXT_THREAD
from florence.model.kernels.cpu.tiles import TILE, Tiles
from florence.model.kernels.cpu.vectors import FLOAT_BYTES, Operation, as_pointer, compiled, take_next

ROWS = 8
"""Query rows that share the conversion of a tile; a larger group is computed in parts."""

TASKS = 4
"""Heads of a bundle that a thread takes at once, so that it prefetches what it reads next."""

INDEX_BYTES = 4


class AttentionJob(NamedTuple):
    """One call, after HEAD: addresses, sizes, and strides in bytes."""

    groups: int
    heads: int
    rows: int
    slots: int
    room: int
    bundle: int  # groups that are computed in sequence for each head, since they share keys
    queries: int
    query_row: int
    keys: int
    key_slot: int
    key_head: int
    key_position: int
    values: int
    value_slot: int
    value_head: int
    value_position: int
    output: int
    output_row: int
    chosen: int  # int32: position t of group g is in slot chosen[g * group_step + t * position_step]
    group_step: int
    position_step: int
    starts: int  # int32 [groups + 1]: the rows of group g are starts[g]:starts[g + 1]
    lengths: int  # int32 [groups]: keys in use


def scratch_bytes(head_dim: int, room: int) -> int:
    """Working memory of a thread for up to `room` keys, in bytes, rounded up to whole cache lines."""
    width, positions = (-(-size // TILE) * TILE for size in (head_dim, room))
    return (width * (2 * ROWS + TILE) + ROWS * (positions + 2 * TILE)) * FLOAT_BYTES


def make_work(dtype: torch.dtype, head_dim: int) -> Callable[[Any], None]:
    """The function that each thread runs on a job."""
    attend = _make_attend(Tiles(dtype, head_dim), head_dim, dtype.itemsize)
    take, pointer = take_next(), as_pointer()

    def work(address: Any) -> None:
        job = carray(address, 1)[0]
        scratch = job.scratch + take(job.address + NEXT_THREAD) * job.scratch_bytes
        starts = carray(pointer(job.starts), job.groups + 1, np.int32)
        lengths = carray(pointer(job.lengths), job.groups, np.int32)
        bundles = (job.groups + job.bundle - 1) // job.bundle
        first = take(job.address + NEXT_TASK) * TASKS
        while first < bundles * job.heads:
            for task in range(first, min(first + TASKS, bundles * job.heads)):
                bundle, head = task // job.heads * job.bundle, task % job.heads
                for group in range(bundle, min(bundle + job.bundle, job.groups)):
                    start, end, length = starts[group], starts[group + 1], lengths[group]
                    if start >= 0 and start <= end and end <= job.rows and length >= 1 and length <= job.room:
                        for row in range(start, end, ROWS):
                            attend(job, head, group, row, min(end - row, ROWS), length, scratch)
                    else:
                        take(job.address + FAULTS)
            first = take(job.address + NEXT_TASK) * TASKS

    return work


def _make_attend(tiles: Tiles, head_dim: int, item_bytes: int) -> Operation:
    """One head of up to ROWS rows: scores of all keys, softmax, weighted sum of the values."""
    row_bytes, lanes_bytes = tiles.row_bytes, TILE * FLOAT_BYTES
    scale = np.float32(head_dim**-0.5)
    load_scaled, clear, store = tiles.load_scaled, tiles.clear, tiles.store
    begin, dots, exclude, raise_top = tiles.begin, tiles.dots, tiles.exclude, tiles.raise_top
    settle_top, weigh, mix = tiles.settle_top, tiles.weigh, tiles.mix
    gather = _make_gather(tiles)

    def attend(job: Any, head: int, group: int, first_row: int, rows: int, length: int, scratch: int) -> None:
        padded = (length + TILE - 1) // TILE * TILE
        score_row = padded * FLOAT_BYTES
        mixed = scratch + ROWS * row_bytes
        block = mixed + ROWS * row_bytes
        top = block + TILE * row_bytes  # [rows, TILE]
        total = top + ROWS * lanes_bytes  # [rows, TILE]
        scores = total + ROWS * lanes_bytes  # [rows, padded]
        source = job.queries + first_row * job.query_row + head * head_dim * item_bytes
        for row in range(rows):
            load_scaled(source + row * job.query_row, scratch + row * row_bytes, scale)
            clear(mixed + row * row_bytes)
            begin(top + row * lanes_bytes, total + row * lanes_bytes)
        slots = job.chosen + group * job.group_step * INDEX_BYTES
        keys, values = job.keys + head * job.key_head, job.values + head * job.value_head
        for position in range(0, length, TILE):
            gather(job, keys, job.key_slot, job.key_position, slots, position, length, block)
            for row in range(rows):
                here = scores + row * score_row + position * FLOAT_BYTES
                dots(scratch + row * row_bytes, block, here)
                if length - position < TILE:
                    exclude(here, length - position)
                raise_top(here, top + row * lanes_bytes)
        for row in range(rows):
            settle_top(top + row * lanes_bytes)
            for here in range(scores + row * score_row, scores + (row + 1) * score_row, lanes_bytes):
                weigh(here, top + row * lanes_bytes, total + row * lanes_bytes)
        for position in range(0, length, TILE):
            gather(job, values, job.value_slot, job.value_position, slots, position, length, block)
            for row in range(rows):
                mix(scores + row * score_row + position * FLOAT_BYTES, block, mixed + row * row_bytes)
        target = job.output + first_row * job.output_row + head * head_dim * item_bytes
        for row in range(rows):
            store(mixed + row * row_bytes, total + row * lanes_bytes, target + row * job.output_row)

    return compiled(attend)


def _make_gather(tiles: Tiles) -> Operation:
    """Loads a tile of keys or values as float32."""
    row_bytes, load, fetch, clear = tiles.row_bytes, tiles.load, tiles.fetch, tiles.clear
    take, pointer = take_next(), as_pointer()

    def gather(
        job: Any,
        pool: int,
        slot_bytes: int,
        position_bytes: int,
        slots: int,
        first: int,
        length: int,
        block: int,
    ) -> None:
        step, count = job.position_step, min(TILE, length - first)
        slot_of = carray(pointer(slots), (first + TILE) * step + 1, np.int32)
        for index in range(count):
            slot = slot_of[(first + index) * step]
            if slot < 0 or slot >= job.slots:
                take(job.address + FAULTS)
                slot = 0
            source = pool + slot * slot_bytes + (first + index) * position_bytes
            fetch(source)
            load(source, block + index * row_bytes)
        for index in range(count, TILE):
            clear(block + index * row_bytes)

    return compiled(gather)
