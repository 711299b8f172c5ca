"""Attention masks."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed`, else -inf, to be added to scores. Made once, since PyTorch's attention would convert
    a bool mask at each call."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
