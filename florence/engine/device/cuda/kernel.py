"""A row of the table of Triton kernels: a kernel's name, definition, and an example.

Used by everything that goes over all kernels: the check at the start, the tests, and the benchmarks, which
time them on a GPU; what they cost is in `benchmarks/ledger/own_costs.py`. Needs no triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

SizesT = TypeVar("SizesT")


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel and its twin on random inputs; each returns its results. `dense`: the operations used where
    kernels are off, None if these are the twin."""

    kernel: Callable[[], Sequence[Tensor]]
    twin: Callable[[], Sequence[Tensor]]
    dense: Callable[[], Sequence[Tensor]] | None = None


@dataclass(frozen=True)
class CudaKernel(Generic[SizesT]):
    """`name`: of the operation. `example`: makes a `Case` on a device with given sizes: `large` are those of
    Florence-2-large, `small` those of the check at the start. `note`: tells rows for the same operation
    apart."""

    name: str
    example: Callable[[torch.device, torch.dtype, SizesT], Case]
    large: SizesT
    small: SizesT
    note: str = ""

    @property
    def title(self) -> str:
        """The row's name in tables."""
        return f"{self.name}, {self.note}" if self.note else self.name

    def case(self, device: torch.device, dtype: torch.dtype, *, real: bool = True) -> Case:
        """The example with `large` sizes (`real`), or with `small` ones. The three kernels of the search
        share one case."""
        return self.example(device, dtype, self.large if real else self.small)

    def fitted(self, **sizes: int) -> CudaKernel[SizesT]:
        """The same row with these values in `small`, so that the check at the start uses the model's
        sizes."""
        small: Any = self.small
        return replace(self, small=replace(small, **sizes))

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise `AssertionError` unless kernel and twin agree on a small example."""
        case = self.case(device, dtype, real=False)
        tolerance = 1e-4 if dtype is torch.float32 else 2.0**-6
        for made, expected in zip(case.kernel(), case.twin(), strict=True):
            torch.testing.assert_close(made, expected, rtol=tolerance, atol=tolerance, msg=self._differs)

    def _differs(self, message: str) -> str:
        return f"{self.name} differs from its definition: {message}"
