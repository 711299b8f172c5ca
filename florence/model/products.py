"""The interface through which a device chooses how linear layers compute: the layout of their weights, their
products in fp8, and the adapters beside them.

`ProductBackend` uses PyTorch's operations on any device, `CpuProducts` the kernels for CPUs. Knows modules
and tensors; the engine decides which backend a device gets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from florence.model.adapters.grouped import GroupedAdapters
from florence.model.adapters.lowrank import AdapterBank
from florence.model.kernels.cpu.low_rank import LowRankSums
from florence.model.kernels.cpu.openmp import available
from florence.model.kernels.fp8 import EMULATED, Fp8Products
from florence.model.kernels.linear import pack


class ProductBackend:
    """How linear layers compute; this class leaves them as they are."""

    def pack(self, model: nn.Module) -> None:
        """Put the weights into the layout of the device's kernels, except quantized ones."""

    def fp8(self) -> Fp8Products:
        """Products in fp8. Raises `SettingsError` where the device's own differ from their definition."""
        return EMULATED

    def make_bank(self, model: nn.Module, slots: int) -> AdapterBank:
        """A bank for `slots` adapters beside the layers of a model, which is packed already, if at all."""
        return GroupedAdapters(model, slots)


@dataclass(frozen=True, slots=True)
class CpuProducts(ProductBackend):
    """By the project's kernels and oneDNN, for layers that fit. `threads`: as for `pack`."""

    dtype: torch.dtype
    threads: int | None = None

    def pack(self, model: nn.Module) -> None:
        pack(model, self.threads)

    def make_bank(self, model: nn.Module, slots: int) -> AdapterBank:
        kernel = LowRankSums(self.dtype, self.threads) if available(self.dtype) else None
        return GroupedAdapters(model, slots, kernel)
