"""Products with int8 weights: a static scale for each output, a dynamic scale for each row of the input.

The scheme is that of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) without its outlier columns, and of
oneDNN's symmetric per-channel quantisation. Each row is quantised by its own largest value, so that an answer
does not depend on the other rows of a batch. Uses operators of PyTorch's quantiser that are not a documented
interface; where they are missing, there is no int8.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from florence.model.kernels.plain import SMALLEST, activate

STEPS = 127
"""Quantisation steps from zero to the largest value of a row, or of an output's weights."""

ZERO = 128
"""The zero point of the input's uint8 values."""


class Int8Weight:
    """A weight [out_features, in_features], symmetric in int8 and packed for oneDNN's kernel, and its
    bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.float()
        self.bias = None if bias is None else bias.float()
        self.scales = weight.abs().amax(dim=1).clamp_min(SMALLEST) / STEPS  # [out_features]
        steps = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(steps, None)
        self.zeros = torch.zeros(len(steps), dtype=torch.int64)
        self.rounding = torch.tensor(ZERO + 0.5)  # a cast to a byte truncates: plus 0.5 it rounds

    def product(
        self, states: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """[..., in_features] -> [..., out_features] of the same dtype; sums are int32, scaled in float32."""
        rows = states.reshape(-1, states.shape[-1]).float()
        lowest, highest = rows.aminmax(dim=1, keepdim=True)
        scales = torch.maximum(highest, -lowest).clamp_min_(SMALLEST).div_(STEPS)  # [rows, 1]
        steps = torch.addcmul(self.rounding, rows, scales.reciprocal()).to(torch.uint8)
        sums: Tensor = torch.ops.onednn.qlinear_pointwise(
            steps, 1.0, ZERO, self.packed, self.scales, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "none",
        )  # fmt: skip
        total = sums.mul_(scales) if self.bias is None else torch.addcmul(self.bias, sums, scales)
        result = total.to(states.dtype).view(*states.shape[:-1], -1)
        return activate(result if residual is None else result.add_(residual), activation)


def can_quantize() -> bool:
    """Whether this PyTorch has the operators, and the CPU an architecture where they were measured."""
    names = ("qlinear_prepack", "qlinear_pointwise")
    x86 = platform.machine() in ("x86_64", "AMD64")
    return x86 and all(hasattr(torch.ops.onednn, name) for name in names)
