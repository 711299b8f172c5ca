"""Products of linear layers on a CUDA device. Looks for kernels only when they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from florence.engine.config import KernelChoice
from florence.engine.device.cuda.find_kernels import find_fp8, find_low_rank
from florence.model.adapters.lowrank import AdapterBank, StackedAdapters
from florence.model.kernels.fp8 import Fp8Products
from florence.model.products import ProductBackend


@dataclass(frozen=True, slots=True)
class CudaProducts(ProductBackend):
    """Weights stay as they are loaded; adapters have fixed shapes, so that graphs can be captured. `kernels`:
    whether Triton kernels may be used."""

    device: torch.device
    dtype: torch.dtype
    kernels: KernelChoice = "auto"

    def fp8(self) -> Fp8Products:
        return find_fp8(self.device, self.kernels)

    def make_bank(self, model: nn.Module, slots: int) -> AdapterBank:
        kernels = find_low_rank(self.device, self.dtype) if self.kernels == "auto" else None
        return StackedAdapters(model, slots, kernels)
