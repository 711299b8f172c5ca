"""Products of linear layers on a CUDA device. Looks for kernels only when they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from florence.engine.config import KernelChoice
from florence.engine.device.cuda.find_kernels import agree, can_run, has_triton, load_fp8, load_low_rank
from florence.errors import SettingsError
from florence.model.adapters.lowrank import AdapterBank, StackedAdapters
from florence.model.kernels import fp8
from florence.model.kernels.fp8 import Fp8Products
from florence.model.products import ProductBackend


@dataclass(frozen=True, slots=True)
class CudaProducts(ProductBackend):
    """Weights stay as they are loaded; adapters have fixed shapes, so that graphs can be captured. `kernels`:
    whether Triton kernels may be used, where they agree with their definitions."""

    device: torch.device
    dtype: torch.dtype
    kernels: KernelChoice = "auto"

    def fp8(self) -> Fp8Products:
        products = Fp8Products(multiply=fp8.multiply)
        if self.kernels == "auto" and has_triton("products in fp8"):
            from florence.engine.device.cuda.kernels import QUANTIZE

            if agree([QUANTIZE], self.device, torch.bfloat16, "products in fp8"):
                products = load_fp8()
        try:
            with torch.cuda.device(self.device), torch.inference_mode():
                fp8.check(self.device, products)
        except Exception as error:
            raise SettingsError(
                f"this GPU can't multiply as dtype 'fp8' needs; choose another dtype: {error}"
            ) from error
        return products

    def make_bank(self, model: nn.Module, slots: int) -> AdapterBank:
        kernels = None
        if self.kernels == "auto" and can_run(self.device, "adapters", []):
            from florence.engine.device.cuda.kernels import LOW_RANK_KERNELS

            if agree(LOW_RANK_KERNELS, self.device, self.dtype, "adapters"):
                kernels = load_low_rank()
        return StackedAdapters(model, slots, kernels)
