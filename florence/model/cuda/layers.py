"""Linear layers fused with what follows them, by the Triton kernels, for decode steps and encodes. Imports
triton, so it is only imported where a CUDA device computes.

Layers with a packed weight compute their own product; adapters' sums are added to a product in place.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.kernels.activations import activate
from florence.model.kernels.cuda import gelu, norms
from florence.model.kernels.linear import Linear


def apply(linear: Linear, states: Tensor) -> Tensor:
    """A linear layer with its activation, [..., inner] -> [..., outputs]."""
    if linear.packed is not None:
        result: Tensor = linear(states)
        return result
    if linear.beside is not None:  # adapters' sums are added before the activation
        product = F.linear(states, linear.weight, linear.bias)
        linear.beside.add_to(product, states)
        return activate(product, linear.activation)
    if linear.activation == "gelu" and gelu.takes(states.dtype):
        return gelu.gelu_linear(states, linear.weight, linear.bias)
    return activate(F.linear(states, linear.weight, linear.bias), linear.activation)


def normed(linear: Linear, norm: nn.LayerNorm, inputs: Tensor, residual: Tensor) -> Tensor:
    """`norm(residual + linear(inputs))`, of the shape of `residual` [..., outputs]."""
    if linear.packed is not None:
        result: Tensor = norm(linear.plus(inputs, residual))
        return result
    product = F.linear(inputs, linear.weight)
    if linear.beside is not None:
        linear.beside.add_to(product, inputs)
    rows = product.view(-1, linear.out_features)
    residuals = residual.reshape(rows.shape)
    return norms.add_norm(rows, linear.bias, residuals, norm.weight, norm.bias, norm.eps).view(residual.shape)
