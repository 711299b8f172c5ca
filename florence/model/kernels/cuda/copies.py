# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The first and last operations of an encode: pixel values are normalised by a look-up table, and each
layer's cross-attention keys and values are written to their requests' slots."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import operation, power_of_2

PIXELS, POSITIONS = 1_024, 4
"""Pixel values of a program of `look_up`, and positions of a program of `write_cross`."""


@triton.jit
def look_up_kernel(
    pixels, table, out, count, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    levels = tl.load(pixels + place, mask=inside, other=0).to(tl.int32)
    values = tl.load(table + (place % CHANNELS).to(tl.int32) * LEVELS + levels, mask=inside)
    tl.store(out + place, values, mask=inside)


@triton.jit
def write_cross_kernel(
    states, slots, key_cache, value_cache, length, slot_stride, head_stride,
    WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(1)
    position, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (position < length)[:, None] & (d < WIDTH)[None, :]
    read = (request.to(tl.int64) * length + position)[:, None] * (2 * WIDTH) + d[None, :]
    slot = tl.load(slots + request) * slot_stride
    head = d // HEAD_DIM * head_stride + d % HEAD_DIM
    written = slot + position[:, None] * HEAD_DIM + head[None, :]
    tl.store(key_cache + written, tl.load(states + read, mask=inside), mask=inside)
    tl.store(value_cache + written, tl.load(states + read + WIDTH, mask=inside), mask=inside)


def _like_table(pixels: Tensor, table: Tensor, *_: object) -> Tensor:
    return table.new_empty(pixels.shape)


@operation(_like_table)
def look_up(pixels: Tensor, table: Tensor, channels: int) -> Tensor:
    """The table's entry for each pixel value; see `tower_twins.look_up`. All tensors are contiguous."""
    out, count = _like_table(pixels, table), pixels.numel()
    look_up_kernel[(triton.cdiv(count, PIXELS),)](
        pixels, table, out, count, CHANNELS=channels, LEVELS=len(table) // channels, BLOCK=PIXELS
    )
    return out


@operation(mutates=("key_cache", "value_cache"))
def write_cross(states: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    """Write a layer's keys and values into their slots; see `tower_twins.write_cross`. `states` is
    contiguous."""
    requests, length, width = states.shape[0], states.shape[1], states.shape[2] // 2
    write_cross_kernel[triton.cdiv(length, POSITIONS), requests](
        states, slots, key_cache, value_cache, length, *key_cache.stride()[:2],
        WIDTH=width, HEAD_DIM=key_cache.shape[3], ROWS=POSITIONS, BLOCK=power_of_2(width),
    )  # fmt: skip
