# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Quantises rows to e4m3, each with its own scale, in one pass: `fp8.quantize_rows` for NVIDIA GPUs from
sm_89 on."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels import fp8, plain
from florence.model.kernels.cuda.operations import operation, power_of_2

LARGEST, SMALLEST = tl.constexpr(fp8.LARGEST), tl.constexpr(plain.SMALLEST)
EXPONENT = tl.constexpr(0x7F800000)
"""Mask of a float32's exponent bits; alone they are the largest power of two that is not above the number."""

INVERSE = tl.constexpr(254 << 23)
"""This minus the bits of a power of two gives the bits of its reciprocal."""

MIN_NORMAL = tl.constexpr(121 << 23)
"""Bits of 2 ** -6, e4m3's least normal number; smaller numbers are multiples of an eighth of it."""

TO_WHOLE = tl.constexpr(1.5 * 2.0**23)
"""A float32 of this size has no fraction: adding and subtracting it rounds to the nearest whole number."""


@triton.jit
def _rounded(values):
    """The nearest e4m3 numbers, ties to even. Triton's own conversion truncates to float16 first on sm_89,
    and its interpreter rounds differently."""
    bits = tl.maximum(values.to(tl.int32, bitcast=True) & EXPONENT, MIN_NORMAL)
    power, inverse = bits.to(tl.float32, bitcast=True), (-bits + INVERSE).to(tl.float32, bitcast=True)
    eighths = ((values * inverse * 8 + TO_WHOLE) - TO_WHOLE) * 0.125
    return eighths * power


@triton.jit
def quantize_rows_kernel(rows, out, scales, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = d < WIDTH
    values = tl.load(rows + row * stride + d, mask=inside, other=0.0).to(tl.float32)
    # An exact division, as in the definition: an approximate quotient may round to another e4m3 number.
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values), 0), SMALLEST), LARGEST)
    has_nan = tl.max((values != values).to(tl.int32), 0) > 0  # `tl.max` ignores NaN
    scale = tl.where(has_nan, float("nan"), scale)
    tl.store(scales + row, scale)
    result = _rounded(tl.div_rn(values, scale)).to(tl.float8e4nv)
    tl.store(out + row * WIDTH + d, result, mask=inside)


def _outputs(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape, dtype=fp8.E4M3), rows.new_empty(len(rows), 1, dtype=torch.float32)


@operation(_outputs)
def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, width], contiguous within a row, -> e4m3 and scales; see `fp8.quantize_rows`."""
    (count, width), (out, scales) = rows.shape, _outputs(rows)
    quantize_rows_kernel[(count,)](
        rows, out, scales, rows.stride(0),
        WIDTH=width, BLOCK=power_of_2(width),
    )  # fmt: skip
    return out, scales
