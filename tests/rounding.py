"""Tensors to multiply, and how far a product may be from the exact one."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = {torch.float32: 2e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Half of the distance between neighbours, relative; a little more than that for float32."""


def drawn(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
