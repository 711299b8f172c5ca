"""Activation functions by the names that checkpoints give them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def activate(values: Tensor, name: str | None) -> Tensor:
    """`values` through "gelu", "gelu_new", "relu" or "silu"; unchanged for None."""
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
