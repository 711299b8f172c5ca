# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The tower's window attention and channel attention, directly on the product's queries, keys and values
[pictures, height, width, 3 * dim], without copies of windows or heads.

In window attention a program computes one head for all cells of a window. Channel attention takes two passes:
products of queries and keys over parts of the cells, then their sum, the softmax and the product with the
values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.attention import attend
from florence.model.kernels.cuda.operations import needs_float32, operation, product

WINDOW_QUERIES, WINDOW_KEYS = 32, 16
"""Queries and keys of a window that a program multiplies at a time: 144 cells are five blocks of queries (the
last one partly filled) and nine of keys."""

CHANNEL_BLOCK = 128
"""Cells that a program of channel attention reads at a time."""

PROGRAMS, MAX_PARTS = 512, 64
"""The number of programs of each pass to aim at, and the most parts of a picture's cells."""


@triton.jit
def _window_rows(
    qkv, qkv_bias, first, part, place, top, left, height, width,
    SIDE: tl.constexpr, DIM: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Rows [places, head_dim] of a window's cells. Cells outside the picture were padded with zeros before
    the product, so their rows are its bias."""
    y, x, d = top + place // SIDE, left + place % SIDE, tl.arange(0, HEAD_DIM)
    inside = (place < SIDE * SIDE) & (y < height) & (x < width)
    where = first + (y * width + x)[:, None] * (3 * DIM) + part + d[None, :]
    rows = tl.load(qkv + where, mask=inside[:, None], other=0.0)
    if HAS_BIAS:
        rows = tl.where(inside[:, None], rows, tl.load(qkv_bias + part + d)[None, :])
    return rows


@triton.jit
def window_attention_kernel(
    qkv, qkv_bias, out, height, width, scale,
    SIDE: tl.constexpr, DIM: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, HAS_BIAS: tl.constexpr, FLOAT32: tl.constexpr,
):  # fmt: skip
    columns = tl.cdiv(width, SIDE)
    window, head, picture = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    top, left = window // columns * SIDE, window % columns * SIDE
    first, d = picture * height * width * (3 * DIM), tl.arange(0, HEAD_DIM)
    for start in range(0, SIDE * SIDE, QUERIES):
        place = start + tl.arange(0, QUERIES)
        query = _window_rows(
            qkv, qkv_bias, first, head * HEAD_DIM, place, top, left, height, width,
            SIDE, DIM, HEAD_DIM, HAS_BIAS,
        )  # fmt: skip
        highest = tl.full((QUERIES,), -float("inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        mixed = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
        for other in range(0, SIDE * SIDE, KEYS):
            near = other + tl.arange(0, KEYS)
            keys = _window_rows(
                qkv, qkv_bias, first, DIM + head * HEAD_DIM, near, top, left, height, width,
                SIDE, DIM, HEAD_DIM, HAS_BIAS,
            )  # fmt: skip
            values = _window_rows(
                qkv, qkv_bias, first, 2 * DIM + head * HEAD_DIM, near, top, left, height, width,
                SIDE, DIM, HEAD_DIM, HAS_BIAS,
            )  # fmt: skip
            seen = (near < SIDE * SIDE)[None, :]
            highest, total, mixed = attend(query, keys, values, seen, highest, total, mixed, scale, FLOAT32)
        y, x = top + place // SIDE, left + place % SIDE
        own = (place < SIDE * SIDE) & (y < height) & (x < width)
        where = picture * height * width * DIM + (y * width + x)[:, None] * DIM + head * HEAD_DIM + d[None, :]
        tl.store(out + where, (mixed / total[:, None]).to(out.dtype.element_ty), mask=own[:, None])


@triton.jit
def channel_scores_kernel(
    qkv, parts, cells, DIM: tl.constexpr, GROUP_DIM: tl.constexpr, BLOCK: tl.constexpr, FLOAT32: tl.constexpr
):  # fmt: skip
    part, group, picture = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits, groups = tl.num_programs(0), tl.num_programs(1)
    first, d = qkv + picture * cells * (3 * DIM) + group * GROUP_DIM, tl.arange(0, GROUP_DIM)
    total = tl.zeros((GROUP_DIM, GROUP_DIM), tl.float32)
    for block in range(part, tl.cdiv(cells, BLOCK), splits):
        cell = block * BLOCK + tl.arange(0, BLOCK)
        where = first + cell[:, None] * (3 * DIM) + d[None, :]
        inside = (cell < cells)[:, None]
        queries = tl.load(where, mask=inside, other=0.0)
        keys = tl.load(where + DIM, mask=inside, other=0.0)
        total += product(tl.trans(queries), keys, FLOAT32)
    place = parts + ((picture * groups + group) * splits + part) * GROUP_DIM * GROUP_DIM
    tl.store(place + d[:, None] * GROUP_DIM + d[None, :], total)


@triton.jit
def channel_mix_kernel(
    qkv, parts, out, cells, scale,
    DIM: tl.constexpr, GROUP_DIM: tl.constexpr, BLOCK: tl.constexpr, FLOAT32: tl.constexpr,
):  # fmt: skip
    part, group, picture = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits, groups, d = tl.num_programs(0), tl.num_programs(1), tl.arange(0, GROUP_DIM)
    place = parts + (picture * groups + group) * splits * GROUP_DIM * GROUP_DIM
    scores = tl.zeros((GROUP_DIM, GROUP_DIM), tl.float32)
    for split in range(splits):
        scores += tl.load(place + split * GROUP_DIM * GROUP_DIM + d[:, None] * GROUP_DIM + d[None, :])
    scores *= scale
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = tl.trans(weights / tl.sum(weights, 1)[:, None]).to(qkv.dtype.element_ty)
    first = picture * cells
    for block in range(part, tl.cdiv(cells, BLOCK), splits):
        cell = block * BLOCK + tl.arange(0, BLOCK)
        column, inside = group * GROUP_DIM + d[None, :], (cell < cells)[:, None]
        where = (first + cell)[:, None]
        values = tl.load(qkv + where * (3 * DIM) + 2 * DIM + column, mask=inside, other=0.0)
        mixed = product(values, weights, FLOAT32)
        tl.store(out + where * DIM + column, mixed.to(out.dtype.element_ty), mask=inside)


def _cells(qkv: Tensor, *_: object) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


@operation(_cells)
def window_attention(qkv: Tensor, qkv_bias: Tensor | None, heads: int, side: int) -> Tensor:
    """Window attention; see `tower_twins.window_attention`. All tensors are contiguous."""
    pictures, height, width, dim = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
    out, head_dim = _cells(qkv), dim // heads
    windows = triton.cdiv(height, side) * triton.cdiv(width, side)
    window_attention_kernel[windows, heads, pictures](
        qkv, qkv_bias, out, height, width, head_dim**-0.5,
        SIDE=side, DIM=dim, HEAD_DIM=head_dim, QUERIES=WINDOW_QUERIES, KEYS=WINDOW_KEYS,
        HAS_BIAS=qkv_bias is not None, FLOAT32=needs_float32(qkv.dtype), num_warps=2,
        num_stages=1 if qkv.element_size() == 4 else 2,
    )  # fmt: skip
    return out


def parts_for(pictures: int, groups: int, cells: int) -> int:
    """Among how many programs the cells of a group of channels are split."""
    wanted = triton.cdiv(PROGRAMS, pictures * groups)
    return int(max(1, min(MAX_PARTS, wanted, triton.cdiv(cells, CHANNEL_BLOCK))))


def _parts(qkv: Tensor, groups: int) -> Tensor:
    pictures, height, width, depth = qkv.shape
    size, splits = depth // 3 // groups, parts_for(pictures, groups, height * width)
    return qkv.new_empty(pictures, groups, splits, size, size, dtype=torch.float32)


@operation(_parts)
def channel_scores(qkv: Tensor, groups: int) -> Tensor:
    """Products of queries and keys, summed over parts of the cells; see `tower_twins.channel_scores`."""
    pictures, height, width, depth = qkv.shape
    parts = _parts(qkv, groups)
    channel_scores_kernel[parts.shape[2], groups, pictures](
        qkv, parts, height * width, DIM=depth // 3, GROUP_DIM=parts.shape[-1], BLOCK=CHANNEL_BLOCK,
        FLOAT32=needs_float32(qkv.dtype), num_warps=4, num_stages=2,
    )  # fmt: skip
    return parts


@operation(_cells)
def channel_mix(qkv: Tensor, parts: Tensor) -> Tensor:
    """Values by the softmax of summed `parts`; see `tower_twins.channel_mix`."""
    pictures, height, width, depth = qkv.shape
    _, groups, splits, size, _ = parts.shape
    out = _cells(qkv)
    channel_mix_kernel[splits, groups, pictures](
        qkv, parts, out, height * width, (height * width) ** -0.5,
        DIM=depth // 3, GROUP_DIM=size, BLOCK=CHANNEL_BLOCK,
        FLOAT32=needs_float32(qkv.dtype), num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
