"""Linear layers with what follows them, by the Triton kernels: shared by decode steps and encodes. Imports
triton, so it is imported where a CUDA device computes, and nowhere else.

Layers that another module has packed compute themselves; what adapters add is added to a product's result.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.kernels.cuda import gelu, norms
from florence.model.kernels.linear import Linear


def activated(linear: Linear, states: Tensor) -> Tensor:
    """A linear layer with its activation, [..., inner] -> [..., outputs]."""
    plain = linear.packed is None and linear.beside is None  # what an adapter adds comes before GELU
    if plain and linear.activation == "gelu" and gelu.takes(states.dtype):
        return gelu.gelu_linear(states, linear.weight, linear.bias)
    result: Tensor = linear(states)
    return result


def normed(linear: Linear, norm: nn.LayerNorm, inputs: Tensor, residual: Tensor) -> Tensor:
    """`norm(residual + linear(inputs))`, of the shape of `residual` [..., outputs]."""
    if linear.packed is not None:
        result: Tensor = norm(linear.plus(inputs, residual))
        return result
    product = linear.with_adapters(F.linear(inputs, linear.weight), inputs).view(-1, linear.out_features)
    rows = residual.reshape(product.shape)
    made = norms.add_norm(product, linear.bias, rows, norm.weight, norm.bias, norm.eps)
    return made.view(residual.shape)
