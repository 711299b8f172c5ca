"""Products of half-precision matrices whose sums are not rounded back to half precision.

A product accumulates in float32 anyway; on a GPU (only there) `out_dtype` writes these sums as they are.
Otherwise they are rounded to bfloat16's eight bits and converted back.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mm_float32(left: Tensor, right: Tensor) -> Tensor:
    """[n, k] @ [k, m] as float32; on a GPU never rounded in between."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


def bmm_float32(left: Tensor, right: Tensor) -> Tensor:
    """[batch, n, k] @ [batch, k, m] as float32; on a GPU never rounded in between."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right).float()
