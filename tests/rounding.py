"""Tensors to multiply, and the allowed error of a product."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = {torch.float32: 2e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""The relative rounding error of each dtype, with a margin for float32."""


def drawn(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """A tensor of random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
