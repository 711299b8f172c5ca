"""The attention kernel of a CPU, compiled by numba.

The kernel is a C function of one address, that of a `Job`. Every thread that calls it takes chunk after chunk
of the job's units until none is left, so any number of threads shares it evenly. A unit is one head of one
group of query rows, which have their keys in common: a tile of 16 keys is widened to float32 once, in the
first cache, for all rows of the group; then comes the softmax of each row, and the values tile by tile.
Nothing here allocates, raises or holds the GIL; numbers that lead out of the pool are counted as faults.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, cfunc, from_dtype, njit, types

from florence.model.cpu_tiles import FLOAT_BYTES, TILE, Operation, Tiles, as_pointer, power_of_two, take_next

ROWS = 8
"""Query rows that share a tile's widening; a group of more is done in parts."""

AHEAD_BYTES = 4096
"""How far ahead of what is read memory is asked for more: a page, at whose end hardware stops of itself."""

INDEX_BYTES = 4

NEXT_UNIT, NEXT_THREAD, FAULTS = 0, 8, 16
"""Places of a job's counters, in bytes; each is an int64 that begins at zero."""


class Job(NamedTuple):
    """One call: addresses, sizes, and strides in bytes."""

    counters: int
    scratch: int
    scratch_bytes: int  # of each thread
    groups: int
    heads: int
    rows: int
    slots: int
    room: int
    chunk: int  # units that a thread takes at once
    queries: int
    query_row: int
    keys: int
    key_slot: int
    key_head: int
    key_place: int
    values: int
    value_slot: int
    value_head: int
    value_place: int
    output: int
    output_row: int
    chosen: int  # int32: place t of group g lies in slot chosen[g * group_step + t * place_step]
    group_step: int
    place_step: int
    starts: int  # int32 [groups + 1]: the rows of group g are starts[g]:starts[g + 1]
    lengths: int  # int32 [groups]: keys in use


JOB = np.dtype([(name, np.int64) for name in Job._fields])


def scratch_bytes(head_dim: int, room: int) -> int:
    """Working memory of a thread for keys of up to `room` places, in whole cache lines."""
    width, places = (-(-size // TILE) * TILE for size in (head_dim, room))
    return (width * (2 * ROWS + TILE) + ROWS * (places + TILE)) * FLOAT_BYTES


def compile_kernel(dtype: torch.dtype, head_dim: int) -> Any:
    """The kernel for one dtype and size; its `address` is the C function's, valid as long as this object."""
    attend = _make_attend(Tiles(dtype, head_dim, AHEAD_BYTES), head_dim, dtype.itemsize)
    take, pointer = take_next(), as_pointer()

    def work(address: Any) -> None:
        job = carray(address, 1)[0]
        scratch = job.scratch + take(job.counters + NEXT_THREAD) * job.scratch_bytes
        starts = carray(pointer(job.starts), job.groups + 1, np.int32)
        lengths = carray(pointer(job.lengths), job.groups, np.int32)
        units = job.groups * job.heads
        first = take(job.counters + NEXT_UNIT) * job.chunk
        while first < units:
            for unit in range(first, min(first + job.chunk, units)):
                head, group = unit // job.groups, unit % job.groups
                start, end, length = starts[group], starts[group + 1], lengths[group]
                if start >= 0 and start <= end and end <= job.rows and length >= 1 and length <= job.room:
                    for row in range(start, end, ROWS):
                        attend(job, head, group, row, min(end - row, ROWS), length, scratch)
                else:
                    take(job.counters + FAULTS)
            first = take(job.counters + NEXT_UNIT) * job.chunk

    return cfunc(types.void(types.CPointer(from_dtype(JOB))), error_model="numpy")(work)


def _make_attend(tiles: Tiles, head_dim: int, item_bytes: int) -> Operation:
    """One head of up to ROWS rows: scores of all keys, softmax, mean of the values."""
    row_bytes, scale = tiles.row_bytes, np.float32(head_dim**-0.5)
    load_scaled, clear, dots, raise_top = tiles.load_scaled, tiles.clear, tiles.dots, tiles.raise_top
    mix, store = tiles.mix, tiles.store
    gather, softmax, pointer = _make_gather(tiles), _make_softmax(), as_pointer()

    def attend(job: Any, head: int, group: int, first_row: int, rows: int, length: int, scratch: int) -> None:
        padded = (length + TILE - 1) // TILE * TILE
        mixed, block = scratch + ROWS * row_bytes, scratch + 2 * ROWS * row_bytes
        top = block + TILE * row_bytes  # [rows, TILE]
        scores = top + ROWS * TILE * FLOAT_BYTES  # [rows, padded]
        tops = carray(pointer(top), ROWS * TILE, np.float32)
        weights = carray(pointer(scores), rows * padded, np.float32)
        offset = first_row * job.query_row + head * head_dim * item_bytes
        for row in range(rows):
            load_scaled(job.queries + offset + row * job.query_row, scratch + row * row_bytes, scale)
            clear(mixed + row * row_bytes)
        tops[:] = -np.inf
        slots = job.chosen + group * job.group_step * INDEX_BYTES
        keys, values = job.keys + head * job.key_head, job.values + head * job.value_head
        for place in range(0, length, TILE):
            gather(job, keys, job.key_slot, job.key_place, slots, place, length, block)
            for row in range(rows):
                dots(scratch + row * row_bytes, block, scores + (row * padded + place) * FLOAT_BYTES)
                for empty in range(length, place + TILE):
                    weights[row * padded + empty] = -np.inf
                raise_top(scores + (row * padded + place) * FLOAT_BYTES, top + row * TILE * FLOAT_BYTES)
        for row in range(rows):
            tops[row] = softmax(
                tops[row * TILE : (row + 1) * TILE], weights[row * padded : (row + 1) * padded], length
            )
        for place in range(0, length, TILE):
            gather(job, values, job.value_slot, job.value_place, slots, place, length, block)
            for row in range(rows):
                mix(scores + (row * padded + place) * FLOAT_BYTES, block, mixed + row * row_bytes)
        offset = first_row * job.output_row + head * head_dim * item_bytes
        for row in range(rows):
            store(mixed + row * row_bytes, job.output + offset + row * job.output_row, tops[row])

    return _compiled(attend)


def _make_gather(tiles: Tiles) -> Operation:
    """A tile of keys or values as float32."""
    row_bytes, load, fetch, clear = tiles.row_bytes, tiles.load, tiles.fetch, tiles.clear
    take, pointer = take_next(), as_pointer()

    def gather(
        job: Any,
        pool: int,
        slot_bytes: int,
        place_bytes: int,
        slots: int,
        first: int,
        length: int,
        block: int,
    ) -> None:
        step, count = job.place_step, min(TILE, length - first)
        slot_of = carray(pointer(slots), (first + TILE) * step + 1, np.int32)
        for index in range(count):
            slot = slot_of[(first + index) * step]
            if slot < 0 or slot >= job.slots:
                take(job.counters + FAULTS)
                slot = 0
            source = pool + slot * slot_bytes + (first + index) * place_bytes
            fetch(source)
            load(source, block + index * row_bytes)
        for index in range(count, TILE):
            clear(block + index * row_bytes)

    return _compiled(gather)


def _make_softmax() -> Operation:
    """Scores -> weights in place; returns what they must be multiplied by to have the sum 1."""
    exponential = _make_exponential()

    def total(weights: Any, length: int) -> Any:
        result = np.float32(0)
        for place in range(length):
            result += weights[place]
        return result

    total = _compiled(total, fastmath={"reassoc", "nsz"})  # added in the order that suits the registers

    def softmax(top: Any, scores: Any, length: int) -> Any:
        greatest = top.max()
        for place in range(len(scores)):
            scores[place] = exponential(scores[place] - greatest)
        return np.float32(1) / total(scores, length)

    return _compiled(softmax)


def _make_exponential() -> Operation:
    """exp of a float32 that is not above zero: 2 ** n * exp(rest) with |rest| <= log(2) / 2.

    Plain arithmetic, so that LLVM computes a register full at once. Adding 1.5 * 2 ** 23 rounds to a whole
    number.
    """
    number, power = np.float32, power_of_two()
    rounder, per_log2, least = number(1.5 * 2**23), number(1 / math.log(2)), number(-87)
    log2_high = number(0.693359375)  # few bits, so that n * log2_high is exact
    log2_low = number(math.log(2) - 0.693359375)
    taylor = [number(1 / math.factorial(power)) for power in range(7, -1, -1)]
    c7, c6, c5, c4, c3, c2, c1, c0 = taylor

    def exponential(x: Any) -> Any:
        x = least if x < least else x  # what is not a number stays so
        shifted = x * per_log2 + rounder
        n = shifted - rounder
        rest = (x - n * log2_high) - n * log2_low
        result = ((((((c7 * rest + c6) * rest + c5) * rest + c4) * rest + c3) * rest + c2) * rest + c1) * rest
        return (result + c0) * power(shifted)

    return _compiled(exponential)


def _compiled(function: Any, fastmath: Any = False) -> Operation:
    """numba's function; `fastmath` is said each time because a caller's would be taken over."""
    return njit(function, nogil=True, error_model="numpy", fastmath=fastmath)
