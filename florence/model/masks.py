"""Masks of attention."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed`, else -inf, to be added to scores: PyTorch's attention makes this of a bool mask at
    each call."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
