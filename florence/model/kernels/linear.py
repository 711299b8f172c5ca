"""Linear layers and convolutions that can lay their weights out once, as a CPU's kernels read them.

Until `pack` is called they are PyTorch's own, and their tensors have the names and shapes of a checkpoint.
Packing changes where numbers lie and which operations run in one pass (an activation or a sum behind the
product), never the type of weights and states. Not covered: gradients, moving a packed layer to another
device, saving it.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.devices import has_fast_bf16
from florence.model.kernels import onednn
from florence.model.kernels.activations import activate
from florence.model.kernels.cpu import openmp as cpu_team
from florence.model.kernels.cpu.products import PanelWeight, Products
from florence.model.kernels.int8 import Int8Weight


class LaidOut(Protocol):
    """A weight and its bias as some kernel reads them: [..., inner] -> [..., outputs], then the activation,
    or `residual` added."""

    def product(
        self, states: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor: ...


class Linear(nn.Linear):
    """`nn.Linear` with the activation behind it, and a sum with a residual as one operation.

    `activation` is a name that `activate` knows.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: str | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.activation = activation
        self.laid_out: LaidOut | None = None

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.laid_out is None:
            return activate(F.linear(states, self.weight, self.bias), self.activation)
        return self.laid_out.product(states, self.activation)

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        """`residual + self(states)`, for a layer without activation."""
        if self.laid_out is None:
            return residual + F.linear(states, self.weight, self.bias)
        return self.laid_out.product(states, residual=residual)

    def sums(self, states: Tensor) -> Tensor | None:
        """`self(states)` without activation, in float32 and not rounded to the dtype before; None where the
        kernel rounds."""
        return self.laid_out.sums(states) if isinstance(self.laid_out, PanelWeight) else None

    def pack(self) -> None:
        """Lay the weight out for oneDNN and let go of the plain one."""
        self.lay_out(onednn.OneDnnWeight(self.weight.detach(), self.bias))

    def lay_out(self, weight: LaidOut) -> None:
        """Compute with this weight, and let go of the plain one."""
        self.laid_out = weight
        self.register_parameter("weight", None)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` over [pictures, height, width, channels], and a sum with its input as one operation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
        self.filters: onednn.OneDnnFilters | None = None

    def forward(self, cells: Tensor) -> Tensor:
        """[pictures, height, width, inputs] -> [pictures, height', width', outputs]."""
        values = cells.permute(0, 3, 1, 2)  # a view: channels last in memory
        result = super().forward(values) if self.filters is None else self.filters.convolve(values)
        return result.permute(0, 2, 3, 1)

    def plus(self, cells: Tensor) -> Tensor:
        """`cells + self(cells)`, for a convolution that keeps the shape."""
        if self.filters is None:
            return cells + self.forward(cells)
        return self.filters.plus(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def pack(self) -> None:
        """Lay the weight out for oneDNN and let go of the plain one."""
        geometry = [self.kernel_size[0] // 2] * 2, list(self.stride), list(self.dilation), self.groups
        self.filters = onednn.OneDnnFilters(self.weight.detach(), self.bias, geometry)
        self.register_parameter("weight", None)


def pack(model: nn.Module, threads: int | None = None) -> bool:
    """Pack every layer of `model` that can be, one after another: one plain weight more than the model is
    held. `threads`: how many compute a product, PyTorch's number where it is None.

    Returns whether anything was packed. An embedding that shares its tensor with a layer keeps it.
    """
    weight = next(model.parameters())
    products = make_products(weight.device, weight.dtype, threads)
    has_onednn = onednn.available(weight.device, weight.dtype)
    packed = False
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, Linear | Conv2d) or module.weight is None:
                continue
            if isinstance(module, Linear) and products is not None and products.fit(module.weight):
                module.lay_out(PanelWeight(products, module.weight.detach(), module.bias))
            elif has_onednn:
                module.pack()
            packed |= module.weight is None
    return packed


def make_products(device: torch.device, dtype: torch.dtype, threads: int | None) -> Products | None:
    """The kernel for products on this CPU; None where oneDNN's are faster, or there can be none."""
    if device.type != "cpu" or not cpu_team.available(dtype):
        return None
    if dtype is torch.bfloat16 and has_fast_bf16():
        return None
    return Products(dtype, threads)


def quantize(*parts: nn.Module) -> None:
    """Let every linear layer in these parts of a model compute in int8."""
    with torch.no_grad():
        for part in parts:
            for module in part.modules():
                if isinstance(module, Linear):
                    module.lay_out(Int8Weight(module.weight.detach(), module.bias))
