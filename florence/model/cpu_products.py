"""Products with weights on a CPU, for many rows or few.

Weights of any dtype are widened to float32 on their way into the registers, and a row's result is the same
to the last bit whatever rows are beside it. oneDNN's products are as fast for hundreds of rows of float32;
they are slower for the few rows of a decode step, and where instructions for bfloat16 are slower than those
for float32 (`has_fast_bf16`) they use them all the same. Knows tensors; `cpu_product_kernel` is what runs.
Needs numba; nothing here imports it before `Products` are made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florence.model.activations import activate
from florence.model.cpu_team import DTYPES, Team, rows_of

TASKS = 16
"""Tasks of each thread that a product is cut into: whoever is done first takes what is left."""


class Products:
    """The kernel for one dtype, compiled when it is made (about a second).

    `threads` as for `Team`. Calls from several threads don't meet. Gradients are not followed.
    """

    def __init__(self, dtype: torch.dtype, threads: int | None = None, lanes: int | None = None) -> None:
        from florence.model import cpu_panels, cpu_product_kernel

        if dtype not in DTYPES:
            raise ValueError(f"no kernel for {dtype}; there are ones for {', '.join(map(str, DTYPES))}")
        wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        self.dtype = dtype
        self.panels = cpu_panels.Panels(dtype, lanes or (16 if wide else 8))
        self.team = Team(threads)
        self.kernels = cpu_product_kernel
        self.kernel = cpu_product_kernel.compile_kernel(self.panels, dtype.itemsize)
        self._multiple = cpu_panels.LOAD

    def fit(self, weight: Tensor) -> bool:
        """Whether a weight can be laid out for them."""
        return weight.dtype == self.dtype and weight.shape[1] % self._multiple == 0


class PanelWeight:
    """A linear layer's weight [outputs, inner] and bias, laid out for `Products`, which they must fit."""

    def __init__(self, products: Products, weight: Tensor, bias: Tensor | None) -> None:
        self._products = products
        self.outputs, self.inner = weight.shape
        self.packed = products.kernels.lay_out(weight, products.panels)
        padded = len(self.packed) * products.panels.width
        self.bias = torch.zeros(padded)
        if bias is not None:
            self.bias[: self.outputs] = bias.detach()

    def product(
        self, states: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """[..., inner] -> [..., outputs], summed up in float32; then the activation, then `residual` is
        added, then it is rounded to the dtype.

        Raises `ValueError` for a shape, a dtype or a device that does not fit.
        """
        if activation not in (None, "gelu"):
            result = activate(self._run(states, None, states.dtype), activation)
            return result if residual is None else result.add_(residual)
        return self._run(states, residual, states.dtype, gelu=activation is not None)

    def sums(self, states: Tensor) -> Tensor:
        """[..., inner] -> float32 [..., outputs], the sums as they are."""
        return self._run(states, None, torch.float32)

    def _run(
        self, states: Tensor, residual: Tensor | None, dtype: torch.dtype, *, gelu: bool = False
    ) -> Tensor:
        products, panels = self._products, self._products.panels
        rows = _as_rows(states, self.inner, products.dtype)
        output = torch.empty(len(rows), self.outputs, dtype=dtype)
        added = None if residual is None else _as_rows(residual, self.outputs, products.dtype)
        if added is not None and len(added) != len(rows):
            raise ValueError(f"{len(added)} rows of a residual for {len(rows)} rows")
        block = products.kernels.block_rows(panels, len(rows), self.inner)
        blocks, count = -(-len(rows) // block), len(self.packed)
        group = max(1, min(count, count * blocks // (TASKS * products.team.threads)))
        products.team.run(
            products.kernel.address,
            products.kernels.scratch_bytes(panels, block, self.inner),
            len(rows), self.inner, self.outputs, count, block, group,
            *rows_of(rows),
            self.packed.data_ptr(),
            self.bias.data_ptr(),
            *((0, 0) if added is None else rows_of(added)),
            *rows_of(output),
            gelu,
            dtype is torch.float32,
        )  # fmt: skip
        return output.view(*states.shape[:-1], self.outputs)


def _as_rows(states: Tensor, numbers: int, dtype: torch.dtype) -> Tensor:
    """[..., numbers] as [rows, numbers]. Raises `ValueError` for another shape, dtype or device."""
    if states.shape[-1] != numbers or states.dtype != dtype or states.device.type != "cpu":
        raise ValueError(f"states must be [..., {numbers}] of {dtype} in memory")
    rows = states.reshape(-1, numbers)
    return rows if rows.stride(-1) == 1 else rows.contiguous()
