"""Products in fp8: a static scale for each output, a dynamic scale for each row of the input.

Both operands are rounded to e4m3 (four bits of exponent, three of mantissa; Micikevicius et al. 2022, arXiv
2209.05433), sums are float32, results the dtype of the input. Each row is scaled by its own largest value, so
that an answer does not depend on the other rows of a batch. NVIDIA GPUs multiply such numbers from sm_89 on;
elsewhere products are emulated with the same rounding, slower than float32, in order to measure what fp8
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from florence.model.kernels.plain import SMALLEST, activate

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest e4m3 number."""

MULTIPLE = 16
"""On a GPU, a product's sizes must be multiples of this."""

OLDEST = 8, 9
"""The oldest compute capability with fp8 products."""

RowQuantizer = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`quantize_rows`, or a function that computes the same."""

RowProduct = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`emulate`, or a function that computes the same up to rounding of the sums to bfloat16."""


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, width] -> the rows divided by their scales, in e4m3, and float32 scales [rows, 1]."""
    values = rows.float()
    scales = values.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return (values / scales).to(E4M3), scales


def emulate(
    rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None
) -> Tensor:
    """bfloat16 [rows, outputs] from e4m3 [rows, inner] and [outputs, inner], with the scales of their rows
    [rows, 1] and [outputs, 1]: exact products of e4m3 numbers, summed in float32."""
    total = (rows.float() @ weight.float().T) * row_scales * weight_scales.T
    return (total if bias is None else total + bias.float()).to(torch.bfloat16)


def multiply(
    rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None
) -> Tensor:
    """`emulate` by one operation of a GPU."""
    return torch._scaled_mm(
        rows,
        weight.T,
        scale_a=row_scales,
        scale_b=weight_scales.T,
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=False,  # it would sum with fewer bits than float32 has
    )


@dataclass(frozen=True, slots=True)
class Fp8Products:
    """How a device multiplies in fp8; the defaults emulate it on any device."""

    quantize: RowQuantizer = quantize_rows
    multiply: RowProduct = emulate


EMULATED: Final = Fp8Products()


class Fp8Weight:
    """A weight [outputs, inner] in e4m3, and its bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None, products: Fp8Products = EMULATED) -> None:
        self.bias = None if bias is None else bias.detach()
        self.weight, self.scales = quantize_rows(weight)
        self._products = products

    def product(
        self, states: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """bfloat16 [..., inner] -> [..., outputs], `residual` [..., outputs] added, then an activation."""
        rows, scales = self._products.quantize(states.reshape(-1, states.shape[-1]))
        total = self._products.multiply(rows, scales, self.weight, self.scales, self.bias)
        result = total.view(*states.shape[:-1], -1)
        return activate(result if residual is None else result.add_(residual), activation)


def fits(weight: Tensor) -> bool:
    """Whether a GPU supports a weight of this size."""
    return not any(size % MULTIPLE for size in weight.shape)


def can_multiply(device: torch.device) -> bool:
    """Whether this GPU, with this PyTorch, can multiply in fp8."""
    return hasattr(torch, "_scaled_mm") and torch.cuda.get_device_capability(device) >= OLDEST


def check(device: torch.device, products: Fp8Products) -> None:
    """Raise `AssertionError`, or what the device raises, unless these products on this device equal the
    emulated ones up to rounding of the sums to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, 64, generator=generator) for size in (32, 48))
    bias = torch.randn(48, generator=generator).to(device, torch.bfloat16)
    rows, scales = products.quantize(states.to(device, torch.bfloat16))
    there = rows, scales, *quantize_rows(weight.to(device)), bias
    torch.testing.assert_close(products.multiply(*there), emulate(*there), rtol=2**-7, atol=2**-7)
