"""Linear layers and convolutions with weights in the layout of oneDNN's kernels.

The operators are those that PyTorch's compiler calls, not a documented interface: where one is missing,
nothing is packed for oneDNN.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from florence.model.kernels.plain import activate

OPERATORS = (
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_convolution_pointwise",
    "_reorder_convolution_weight",
)
ACTIVATIONS = {  # name -> oneDNN's name and algorithm
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}


class OneDnnWeight:
    """A linear layer's weight [outputs, inner] and bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def product(
        self, states: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """[..., inner] -> [..., outputs], `residual` [..., outputs] added, then an activation."""
        if residual is not None:
            total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                states, residual, self._packed, self._bias, "add"
            )
            return activate(total, activation)
        attribute, algorithm = ACTIVATIONS[activation]
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._packed, self._bias, attribute, [], algorithm
        )
        return result


Geometry = tuple[list[int], list[int], list[int], int]
"""Padding, stride, dilation and groups of a convolution."""


class OneDnnFilters:
    """A convolution's weight [outputs, inputs / groups, height, width] and bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
        self._packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry)
        self._bias, self._geometry = bias, geometry

    def convolve(self, values: Tensor) -> Tensor:
        """[pictures, inputs, height, width] -> [pictures, outputs, height', width']."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            values, self._packed, self._bias, *self._geometry, "none", [], ""
        )
        return result

    def plus(self, values: Tensor) -> Tensor:
        """`values + self.convolve(values)`, for a convolution that keeps the shape."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            values, values, self._packed, self._bias, *self._geometry, "add", 1.0, None, [], None
        )
        return result


def available(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators, and this processor supports `dtype` in them."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS):
        return False
    if dtype in (torch.bfloat16, torch.float16):
        kind = "bf16" if dtype is torch.bfloat16 else "fp16"
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
        return supported is not None and bool(supported())
    return dtype is torch.float32
