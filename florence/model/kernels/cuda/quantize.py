# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Rows to e4m3, each by its own scale, in one pass: `fp8.quantize_rows` for NVIDIA's cards from sm_89 on."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from florence.model.kernels import fp8
from florence.model.kernels.cuda.operations import operation, power_of_2

LARGEST, SMALLEST = tl.constexpr(fp8.LARGEST), tl.constexpr(fp8.SMALLEST)
EXPONENT = tl.constexpr(0x7F800000)
"""Of a float32's bits: with all others zero they are the power of two below it."""

LEAST_NORMAL = tl.constexpr(2.0**-6)
"""Of e4m3; smaller numbers are multiples of an eighth of it."""

TO_WHOLE = tl.constexpr(1.5 * 2.0**23)
"""A float32 of this size has no fraction: adding and subtracting it rounds to the nearest whole number."""


@triton.jit
def _rounded(values):
    """The nearest numbers of e4m3, ties to even: triton's interpreter rounds otherwise."""
    powers = (values.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True)
    steps = tl.maximum(powers, LEAST_NORMAL) / 8
    return ((values / steps + TO_WHOLE) - TO_WHOLE) * steps


@triton.jit
def quantize_rows_kernel(
    rows, out, scales, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROUND: tl.constexpr
):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = d < WIDTH
    values = tl.load(rows + row * stride + d, mask=inside, other=0.0).to(tl.float32)
    # Divided as the definition does: an approximate quotient may round to another number of e4m3.
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values), 0), SMALLEST), LARGEST)
    values = tl.div_rn(values, scale)
    if ROUND:
        values = _rounded(values)
    tl.store(scales + row, scale)
    tl.store(out + row * WIDTH + d, values.to(tl.float8e4nv), mask=inside)


def _outputs(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape, dtype=fp8.E4M3), rows.new_empty(len(rows), 1, dtype=torch.float32)


@operation(_outputs)
def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, width], contiguous within a row, -> e4m3 and scales; see `fp8.quantize_rows`."""
    (count, width), (out, scales) = rows.shape, _outputs(rows)
    quantize_rows_kernel[(count,)](
        rows, out, scales, rows.stride(0),
        WIDTH=width, BLOCK=power_of_2(width), ROUND=bool(knobs.runtime.interpret),
    )  # fmt: skip
    return out, scales
