"""Linear layers and convolutions whose weights can be packed once into the layout that a kernel reads.

Until `pack` is called they are PyTorch's own, and their tensors have the names and shapes of a checkpoint.
Packing changes the layout of weights and fuses an activation or a sum into the product, never the dtype of
weights and states. Not covered: gradients, moving a packed layer to another device, saving it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.kernels import onednn
from florence.model.kernels.cpu.products import PanelWeight, make_products
from florence.model.kernels.fp8 import Fp8Weight
from florence.model.kernels.int8 import Int8Weight
from florence.model.kernels.plain import Product, activate, product_float32

PackedWeight = onednn.OneDnnWeight | PanelWeight | Int8Weight | Fp8Weight
"""A weight [outputs, inner] and its bias in the layout of a kernel."""


class Beside(ABC):
    """The adapters beside one layer (`lowrank.py`), which add to its product; `outputs`: of the layer."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    @property
    @abstractmethod
    def is_used(self) -> bool:
        """Whether a row of the current batch may have an adapter here."""

    @abstractmethod
    def _add(self, total: Tensor, states: Tensor) -> None:
        """Add the sums of `states` [rows, in_features] to `total` [rows, outputs]; rows are those of the
        batch, or the same number of rows for each of them."""

    def sums(self, states: Tensor) -> Tensor | None:
        """[..., in_features] -> [..., outputs]; None where no row of the batch has an adapter."""
        if not self.is_used:
            return None
        total = states.new_zeros(*states.shape[:-1], self.outputs)
        self.add_to(total, states)
        return total

    def add_to(self, total: Tensor, states: Tensor) -> None:
        """Add the sums of `states` to `total` [..., outputs], float32 or of the dtype of `states`."""
        if self.is_used:
            self._add(total.view(-1, self.outputs), states.reshape(-1, states.shape[-1]))


class Linear(nn.Linear):
    """`nn.Linear` with an activation after it, and a fused sum with a residual.

    `activation` is a name that `activate` knows. `beside`: adapters, whose sums count as the product's.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: str | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.activation = activation
        self.packed: PackedWeight | None = None
        self.beside: Beside | None = None
        self._padded: Tensor | None = None  # the weight with rows of zeros appended
        self._product: Product = product_float32  # of the padded weight

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.packed is not None:
            return self.packed.product(states, self.activation, self.added(states))
        product = self.bare(states)
        self.add_adapters(product, states)
        return activate(product, self.activation)

    def bare(self, states: Tensor) -> Tensor:
        """The product and the bias, without activation and adapters."""
        if self.packed is not None:
            return self.packed.product(states)
        return F.linear(states, self.weight, self.bias)

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        """`residual + self(states)`, for a layer without activation."""
        if (added := self.added(states)) is not None:
            residual = residual + added
        if self.packed is None:
            return residual + self.bare(states)
        return self.packed.product(states, residual=residual)

    def added(self, states: Tensor) -> Tensor | None:
        """The adapters' sums, [..., out_features]; None where no row has an adapter."""
        return None if self.beside is None else self.beside.sums(states)

    def add_adapters(self, total: Tensor, states: Tensor) -> None:
        """Add the adapters' sums to `total` [..., out_features], float32 or of the layer's dtype."""
        if self.beside is not None:
            self.beside.add_to(total, states)

    def sums(self, states: Tensor) -> Tensor | None:
        """`self(states)` without bias and activation, in float32 and never rounded to the dtype; None where
        the kernel rounds."""
        if self._padded is not None:
            total = self._product(states.reshape(-1, self.in_features), self._padded.T)
            total = total.view(*states.shape[:-1], -1)[..., : self.out_features]
        elif isinstance(self.packed, PanelWeight):
            total = self.packed.sums(states)
        else:
            return None
        self.add_adapters(total, states)
        return total

    def pad_outputs(self, multiple: int, product: Product) -> None:
        """Pad the weight with rows of zeros to a multiple of `multiple`, and let `sums` compute by `product`;
        results are views without the padding. `weight` becomes a view too."""
        rows = -(-self.out_features // multiple) * multiple
        self._padded = F.pad(self.weight.detach(), (0, 0, 0, rows - self.out_features))
        self._product = product
        self.weight = nn.Parameter(self._padded[: self.out_features], requires_grad=False)

    def pack(self) -> None:
        """Pack the weight for oneDNN, and drop the plain one."""
        self.use(onednn.OneDnnWeight(self.weight.detach(), self.bias))

    def use(self, weight: PackedWeight) -> None:
        """Compute with this packed weight, and drop the plain one."""
        self.packed = weight
        self.register_parameter("weight", None)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` over [pictures, height, width, channels], and a fused sum with its input."""

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
        """Pack the weight for oneDNN, and drop the plain one."""
        geometry = [self.kernel_size[0] // 2] * 2, list(self.stride), list(self.dilation), self.groups
        self.filters = onednn.OneDnnFilters(self.weight.detach(), self.bias, geometry)
        self.register_parameter("weight", None)


def pack(model: nn.Module, threads: int | None = None) -> bool:
    """Pack every layer of a model in the CPU's memory that a kernel here supports, one after another, so that
    memory grows by at most one weight. `threads`: for a product; None: as many as PyTorch uses.

    Returns whether anything was packed. An embedding that shares a layer's weight keeps the plain tensor.
    """
    dtype = next(model.parameters()).dtype
    products = make_products(dtype, threads)
    has_onednn = onednn.available(dtype)
    packed = False
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, Linear | Conv2d) or module.weight is None:
                continue
            if isinstance(module, Linear) and products is not None and products.fit(module.weight):
                module.use(PanelWeight(products, module.weight.detach(), module.bias))
            elif has_onednn:
                module.pack()
            packed |= module.weight is None
    return packed
