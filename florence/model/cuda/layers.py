"""Linear layers fused with what follows them, by the Triton kernels, for decode steps and encodes. Imports
triton, so it is only imported where a CUDA device computes.

Layers with a packed weight compute their own product; adapters' sums are added to a product in place.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.kernels.cuda import gelu, norms
from florence.model.kernels.linear import Linear


def apply(linear: Linear, states: Tensor) -> Tensor:
    """A linear layer with its activation, [..., inner] -> [..., outputs]."""
    is_plain = linear.packed is None and linear.beside is None
    if is_plain and linear.activation == "gelu" and gelu.takes(states.dtype):
        return gelu.gelu_linear(states, linear.weight, linear.bias)
    result: Tensor = linear(states)
    return result


def normed(linear: Linear, norm: nn.LayerNorm, inputs: Tensor, residual: Tensor) -> Tensor:
    """`norm(residual + linear(inputs))`, of the shape of `residual` [..., outputs]."""
    if linear.packed is not None:
        result: Tensor = norm(linear.plus(inputs, residual))
        return result
    product = F.linear(inputs, linear.weight)
    linear.add_adapters(product, inputs)
    rows = product.view(-1, linear.out_features)
    residuals = residual.reshape(rows.shape)
    return norms.add_norm(rows, linear.bias, residuals, norm.weight, norm.bias, norm.eps).view(residual.shape)
