# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The operations of a tower block before a product: depthwise convolution, bias, residual and layer norm, in
one pass over the cells.

A program goes down a strip of cells. Each row that it reads adds to three rows of sums, which are kept in
registers: as the last of three taps for the row above, the middle one for its own, and the first for the row
below.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import operation, power_of_2

ROW_VALUES, MAX_COLUMNS = 4_096, 32
"""Most values, and most cells, of a strip's row: three rows of sums and one of cells fit into registers."""

VALUES_OF_WARP, PROGRAMS = 256, 256
"""Values for each warp (8 for each thread), and the number of programs to aim at (two for each
multiprocessor)."""


def strip_of(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a program's strip, for cells [pictures, height, width, dim]."""
    pictures, height, width, dim = shape
    columns = max(1, min(MAX_COLUMNS, ROW_VALUES // power_of_2(dim)))
    parts = triton.cdiv(PROGRAMS, pictures * triton.cdiv(width, columns))
    return max(1, height // parts), columns


@triton.jit
def _vector(values, d, DIM: tl.constexpr):
    return tl.load(values + d, mask=d < DIM, other=0.0).to(tl.float32)[None, :]


@triton.jit
def position_norm_kernel(
    cells, taps, taps_bias, weight, bias, next_bias, sums, normed, height, width, rows, eps,
    DIM: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, HAS_NEXT: tl.constexpr,
):  # fmt: skip
    strip, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    across = tl.cdiv(width, COLUMNS)
    top, d = strip // across * rows, tl.arange(0, BLOCK)
    x = strip % across * COLUMNS + tl.arange(0, COLUMNS)
    first, real = picture * height * width * DIM, (d < DIM)[None, :]
    above = tl.zeros((COLUMNS, BLOCK), tl.float32)  # sums of the row above, which lack this row
    here = tl.zeros((COLUMNS, BLOCK), tl.float32)  # of this row, which include the row above
    for step in range(rows + 2):
        y = top + step - 1
        total, above, here = above, here, tl.zeros((COLUMNS, BLOCK), tl.float32)
        for tap in range(3):  # not unrolled: the vectors of nine taps would not fit into registers
            near = x + tap - 1
            inside = (y >= 0) & (y < height) & (near >= 0) & (near < width)
            where = first + (y * width + near)[:, None] * DIM + d[None, :]
            values = tl.load(cells + where, mask=inside[:, None] & real, other=0.0).to(tl.float32)
            own = tl.where(tap == 1, 1.0, 0.0)  # the residual is the cell itself
            total += values * _vector(taps + (6 + tap) * DIM, d, DIM)
            above += values * (_vector(taps + (3 + tap) * DIM, d, DIM) + own)
            here += values * _vector(taps + tap * DIM, d, DIM)
        # Always zero, but unknown to the compiler, which would otherwise keep these vectors in registers too.
        again = (step >> 20) * 16
        total += _vector(taps_bias + again, d, DIM)
        mean = tl.sum(total, 1) / DIM
        centred = tl.where(real, total - mean[:, None], 0.0)
        scale = tl.math.rsqrt(tl.sum(centred * centred, 1) / DIM + eps)
        result = centred * scale[:, None] * _vector(weight + again, d, DIM) + _vector(bias + again, d, DIM)
        if HAS_NEXT:
            total += _vector(next_bias + again, d, DIM)
        written = (step >= 2) & (y - 1 < height) & (x < width)[:, None] & real
        where = first + ((y - 1) * width + x)[:, None] * DIM + d[None, :]
        tl.store(sums + where, total.to(sums.dtype.element_ty), mask=written)
        tl.store(normed + where, result.to(normed.dtype.element_ty), mask=written)


def _two_like(cells: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return cells.new_empty(cells.shape), cells.new_empty(cells.shape)


@operation(_two_like)
def position_norm(
    cells: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    next_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Cells with their positions, and their layer norm; see `tower_twins.position_norm`. All tensors are
    contiguous."""
    pictures, height, width, dim = cells.shape
    sums, normed = _two_like(cells)
    rows, columns = strip_of(cells.shape)
    block, strips = power_of_2(dim), triton.cdiv(height, rows) * triton.cdiv(width, columns)
    position_norm_kernel[strips, pictures](
        cells, taps, taps_bias, weight, bias, next_bias, sums, normed, height, width, rows, eps,
        DIM=dim, BLOCK=block, COLUMNS=columns, HAS_NEXT=next_bias is not None,
        num_warps=max(1, columns * block // VALUES_OF_WARP),
    )  # fmt: skip
    return sums, normed
