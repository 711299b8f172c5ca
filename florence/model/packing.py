"""Linear layers and convolutions that can lay their weights out once, as the CPU's kernels read them.

Until `pack` is called they are PyTorch's own, and their tensors have the names and shapes of a checkpoint.
Packing changes where numbers lie and which operations run in one pass (an activation or a sum behind the
product), never the type that is computed in. It uses oneDNN operators which PyTorch's own compiler calls, but
which are not a documented interface: where one is missing, nothing is packed.

Not covered: gradients, moving a packed layer to another device, saving it.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.int8 import Int8Weight

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


class Linear(nn.Linear):
    """`nn.Linear` with the activation behind it, and a sum with a residual as one operation.

    `activation` is a name of `ACTIVATIONS`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: str | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.activation = activation
        self.packed: Tensor | None = None
        self.int8: Int8Weight | None = None

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.int8 is not None:
            return _activate(self.int8.product(states, self.bias), self.activation)
        if self.packed is None:
            return _activate(F.linear(states, self.weight, self.bias), self.activation)
        attribute, algorithm = ACTIVATIONS[self.activation]
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.packed, self.bias, attribute, [], algorithm
        )
        return result

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        """`residual + self(states)`, for a layer without activation."""
        if self.int8 is not None:
            return self.int8.product(states, self.bias).add_(residual)
        if self.packed is None:
            return residual + F.linear(states, self.weight, self.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            states, residual, self.packed, self.bias, "add"
        )
        return result

    def pack(self) -> None:
        """Reorder the weight and let go of the plain one."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        self.register_parameter("weight", None)

    def quantize(self) -> None:
        """Keep the weight in int8 only."""
        self.int8 = Int8Weight(self.weight.detach())
        self.register_parameter("weight", None)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` over [pictures, height, width, channels], and a sum with its input as one operation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
        self.packed: Tensor | None = None

    def forward(self, cells: Tensor) -> Tensor:
        """[pictures, height, width, inputs] -> [pictures, height', width', outputs]."""
        values = cells.permute(0, 3, 1, 2)  # a view: channels last in memory
        if self.packed is None:
            return super().forward(values).permute(0, 2, 3, 1)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            values, self.packed, self.bias, *self._geometry(), "none", [], ""
        )
        return result.permute(0, 2, 3, 1)

    def plus(self, cells: Tensor) -> Tensor:
        """`cells + self(cells)`, for a convolution that keeps the shape."""
        if self.packed is None:
            return cells + self.forward(cells)
        values = cells.permute(0, 3, 1, 2)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            values, values, self.packed, self.bias, *self._geometry(), "add", 1.0, None, [], None
        )
        return result.permute(0, 2, 3, 1)

    def pack(self) -> None:
        """Reorder the weight and let go of the plain one."""
        padding, stride, dilation, groups = self._geometry()
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight.detach(), padding, stride, dilation, groups
        )
        self.register_parameter("weight", None)

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation and groups."""
        return [self.kernel_size[0] // 2] * 2, list(self.stride), list(self.dilation), self.groups


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators, and this processor computes in `dtype` with them."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if device.type != "cpu" or not x86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS):
        return False
    if dtype in (torch.bfloat16, torch.float16):
        kind = "bf16" if dtype is torch.bfloat16 else "fp16"
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
        return supported is not None and bool(supported())
    return dtype is torch.float32


def pack(model: nn.Module) -> bool:
    """Pack every layer of `model` that can be, one after another: one plain weight more than the model is
    held.

    Returns whether anything was packed. An embedding that shares its tensor with a layer keeps it.
    """
    weight = next(model.parameters())
    if not can_pack(weight.device, weight.dtype):
        return False
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear | Conv2d) and module.weight is not None:
                module.pack()
    return True


def quantize(*parts: nn.Module) -> None:
    """Let every linear layer in these parts of a model compute in int8."""
    with torch.no_grad():
        for part in parts:
            for module in part.modules():
                if isinstance(module, Linear):
                    module.quantize()


def _activate(values: Tensor, activation: str | None) -> Tensor:
    match activation:
        case "gelu":
            return F.gelu(values)
        case "gelu_new":
            return F.gelu(values, approximate="tanh")
        case "relu":
            return F.relu(values)
        case "silu":
            return F.silu(values)
    return values
