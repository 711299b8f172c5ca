"""Products with weights on a CPU, for any number of rows.

Weights of any dtype are converted to float32 as they are loaded into registers, and a row's result is bit for
bit the same whatever other rows are in the batch. oneDNN's products are as fast for hundreds of float32 rows;
they are slower for the few rows of a decode step, and they use bfloat16 instructions even where these are
slower than float32 (`has_fast_bf16`). Knows tensors; the compiled code is in `product_kernel.py`. Needs
numba, which is imported when `Products` are made, not before.
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from florence.model.devices import has_fast_bf16
from florence.model.kernels.cpu.objects import load_kernel
from florence.model.kernels.cpu.openmp import DTYPES, OpenMPTeam, available, places
from florence.model.kernels.plain import activate

TASKS = 16
"""A product is divided into this many tasks for each thread; an idle thread takes the next one."""

MAX_PLANS = 1024
"""Most shapes whose division into tasks is cached."""


class Products:
    """The kernel for one dtype, compiled (about a second) unless cached on disk.

    `threads` as for `OpenMPTeam`. Safe to call from several threads at once. No gradients.
    """

    def __init__(self, dtype: torch.dtype, threads: int | None = None, lanes: int | None = None) -> None:
        from florence.model.kernels.cpu import panels as cpu_panels
        from florence.model.kernels.cpu import product_kernel as cpu_product_kernel

        if dtype not in DTYPES:
            raise ValueError(f"no kernel for {dtype}; there are ones for {', '.join(map(str, DTYPES))}")
        self.dtype = dtype
        self.panels = cpu_panels.Panels(dtype, lanes or cpu_panels.widest_lanes())
        self.team = OpenMPTeam(threads)
        self.plan = lru_cache(MAX_PLANS)(self._plan)
        self._kernels, self._multiple = cpu_product_kernel, cpu_panels.LOAD
        make_work = partial(cpu_product_kernel.make_work, self.panels, dtype.itemsize)
        fields = cpu_product_kernel.ProductJob._fields
        self.kernel = load_kernel(f"product {dtype} {self.panels.width}", fields, make_work)

    def fit(self, weight: Tensor) -> bool:
        """Whether a weight can be packed into panels."""
        return weight.dtype == self.dtype and weight.shape[1] % self._multiple == 0

    def _plan(self, rows: int, inner: int, panels: int) -> tuple[int, int, int]:
        """Rows of a block, panels of a task, and working memory of a thread in bytes."""
        block = self._kernels.block_rows(self.panels, rows, inner)
        group = max(1, min(panels, panels * -(-rows // block) // (TASKS * self.team.threads)))
        return block, group, self._kernels.scratch_bytes(self.panels, block, inner)


def make_products(dtype: torch.dtype, threads: int | None) -> Products | None:
    """The kernel for products on this CPU; None where it is not available, or oneDNN is faster."""
    if not available(dtype) or (dtype is torch.bfloat16 and has_fast_bf16()):
        return None
    return Products(dtype, threads)


class PanelWeight:
    """A linear layer's weight [outputs, inner] and bias, packed for `products`, which must `fit` them."""

    def __init__(self, products: Products, weight: Tensor, bias: Tensor | None) -> None:
        self._products = products
        self.outputs, self.inner = weight.shape
        self._packed = products.panels.lay_out(weight)
        self._panels = self._packed.shape[0]
        self._bias = torch.zeros(self._panels * products.panels.width)
        if bias is not None:
            self._bias[: self.outputs] = bias.detach()

    def product(
        self, states: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """[..., inner] -> [..., outputs]: the sums, `residual` [..., outputs] added, then the activation.

        Sums are float32 and rounded to the dtype at the end; activations other than GELU are applied to
        rounded sums. Raises `ValueError` for a shape, dtype or device that does not match.
        """
        if activation not in (None, "gelu"):
            return activate(self._run(states, residual, states.dtype), activation)
        return self._run(states, residual, states.dtype, gelu=activation is not None)

    def sums(self, states: Tensor) -> Tensor:
        """[..., inner] -> float32 [..., outputs], not rounded to the dtype."""
        return self._run(states, None, torch.float32)

    def _run(
        self, states: Tensor, residual: Tensor | None, dtype: torch.dtype, *, gelu: bool = False
    ) -> Tensor:
        products = self._products
        rows = _as_rows(states, self.inner, products.dtype)
        count = rows.shape[0]
        output = torch.empty(count, self.outputs, dtype=dtype)
        added: tuple[int, ...] = 0, 0
        if residual is not None:
            residual = _as_rows(residual, self.outputs, products.dtype)
            added = places(residual)
            if residual.shape[0] != count:
                raise ValueError(f"{residual.shape[0]} rows of a residual for {count} rows")
        block, group, scratch_bytes = products.plan(count, self.inner, self._panels)
        job = (  # the fields of `ProductJob`
            *(count, self.inner, self.outputs, self._panels, block, group),
            *(*places(rows), self._packed.data_ptr(), self._bias.data_ptr(), *added, *places(output)),
            *(gelu, dtype is torch.float32),
        )
        products.team.run(products.kernel.address, scratch_bytes, job)
        return output if states.dim() == 2 else output.view(*states.shape[:-1], self.outputs)


def _as_rows(states: Tensor, numbers: int, dtype: torch.dtype) -> Tensor:
    """[..., numbers] viewed as [rows, numbers]. Raises `ValueError` for another shape, dtype or device."""
    if states.shape[-1] != numbers or states.dtype != dtype or not states.is_cpu:
        raise ValueError(f"states must be [..., {numbers}] of {dtype} in host memory")
    rows = states if states.dim() == 2 else states.reshape(-1, numbers)
    return rows if rows.stride(1) == 1 else rows.contiguous()
