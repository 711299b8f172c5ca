"""Operations in plain PyTorch that layers and kernels share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]
"""`product_float32` or `product_unrounded`."""

SMALLEST = 1e-12
"""Lower bound of the largest value of a row that is quantised, so that a row of zeros stays zeros."""


def activate(values: Tensor, name: str | None) -> Tensor:
    """`values` through "gelu", "gelu_new", "relu" or "silu", as checkpoints name them; unchanged for None."""
    match name:
        case "gelu":
            return F.gelu(values)
        case "gelu_new":
            return F.gelu(values, approximate="tanh")
        case "relu":
            return F.relu(values)
        case "silu":
            return F.silu(values)
    return values


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed`, else -inf, to be added to scores. Made once, since PyTorch's attention would convert
    a bool mask at each call."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def product_float32(left: Tensor, right: Tensor) -> Tensor:
    """[n, k] @ [k, m], or [batch, n, k] @ [batch, k, m], rounded to their dtype, as float32."""
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    return multiply(left, right).float()


def product_unrounded(left: Tensor, right: Tensor) -> Tensor:
    """`product_float32` without the rounding, for GPUs.

    A product of half-precision matrices accumulates in float32 anyway; `out_dtype`, which PyTorch has for
    GPUs only, writes these sums as they are.
    """
    if left.dtype is torch.float32:
        return product_float32(left, right)
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    return multiply(left, right, out_dtype=torch.float32)
