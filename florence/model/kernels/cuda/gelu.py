# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""A linear layer with GELU in one kernel: the product stays in registers in between. The libraries' fused
products have only GELU's tanh form.

The product is tiled as in Triton's tutorial on matrix multiplication: programs are numbered so that those
that run together share rows and columns in the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import capability, needs_float32, operation, product

SQRT_HALF = tl.constexpr(0.7071067811865476)


class Tile(NamedTuple):
    """Rows, columns and inner size of a program's tile; its warps, and stages of its pipeline."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


HOPPER, OLDER, SMALL = Tile(128, 256, 64, 8, 3), Tile(128, 128, 32, 8, 4), Tile(64, 64, 64, 4, 3)
"""Tiles for sm_90; for older cards, some of which have 99 KiB of shared memory; and for few rows, as in a
decode step, whose time is that of reading the weight."""

FEW_ROWS, GROUP = 512, 8
"""Fewer rows than the first number use the small tile. The second: rows of tiles that are numbered
together."""


def tile_for(rows: int, capability: int) -> Tile:
    """The tile for a product with `rows` rows on a card of this capability (90: sm_90)."""
    if rows < FEW_ROWS:
        return SMALL
    return HOPPER if capability == 90 else OLDER


@triton.jit
def _write(total, bias, out, row, column, rows, columns):
    """Write GELU of a part of the product plus its bias."""
    total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    result = 0.5 * total * (1.0 + tl.math.erf(total * SQRT_HALF))
    where = row.to(tl.int64)[:, None] * columns + column[None, :]
    written = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out + where, result.to(out.dtype.element_ty), mask=written)


@triton.jit
def gelu_linear_kernel(
    states, weight, bias, out, rows, columns,
    INNER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    FLOAT32: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    number, in_group = tl.program_id(0), GROUP * across
    first = number // in_group * GROUP
    height = min(down - first, GROUP)
    tile_row, tile_column = first + number % in_group % height, number % in_group // height
    row, column = tile_row * ROWS + tl.arange(0, ROWS), tile_column * COLUMNS + tl.arange(0, COLUMNS)
    # Past the end the last row and column are read again; the results are not written.
    from_row, from_column = tl.minimum(row, rows - 1).to(tl.int64), tl.minimum(column, columns - 1)
    inner = tl.arange(0, BLOCK)
    left = states + from_row[:, None] * INNER + inner[None, :]
    right = weight + from_column[None, :] * INNER + inner[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, INNER, BLOCK):
        if INNER % BLOCK:
            within = inner < INNER - start
            total += product(
                tl.load(left, mask=within[None, :], other=0.0),
                tl.load(right, mask=within[:, None], other=0.0),
                FLOAT32,
            )
        else:
            total += product(tl.load(left), tl.load(right), FLOAT32)
        left += BLOCK
        right += BLOCK
    # In two halves: GELU of all columns at once would not fit into registers.
    halves = tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
    left_half, right_half = tl.split(halves)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS // 2)
    _write(left_half, bias, out, row, column, rows, columns)
    _write(right_half, bias, out, row, column + COLUMNS // 2, rows, columns)


def _outputs(states: Tensor, weight: Tensor, *_: object) -> Tensor:
    return states.new_empty(*states.shape[:-1], len(weight))


@operation(_outputs)
def gelu_linear(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of a linear layer, in half precision; see `tower_twins.gelu_linear`. All tensors are
    contiguous."""
    rows, (columns, inner) = states.numel() // states.shape[-1], weight.shape
    out, tile = _outputs(states, weight), tile_for(rows, capability())
    gelu_linear_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)](
        states, weight, bias, out, rows, columns,
        INNER=inner, ROWS=tile.rows, COLUMNS=tile.columns, BLOCK=tile.inner, GROUP=GROUP,
        FLOAT32=needs_float32(states.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def takes(dtype: torch.dtype) -> bool:
    """Whether the kernel supports this dtype. Not float32: tensor cores don't keep its precision, and without
    them the libraries' products are faster."""
    return dtype.itemsize == 2
