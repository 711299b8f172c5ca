"""A row of the table of Triton kernels: a kernel's name, definition, cost, and an example.

Used by everything that goes over all kernels: the check at the start, the tests, and the benchmarks, which
count costs on meta tensors or time the kernels on a GPU. Needs no triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

SizesT = TypeVar("SizesT")


class StepLoad(Protocol):
    """What the cost of a step depends on besides shapes: `requests` and `beams` in use, and the mean lengths
    of encoder states and of a beam's past, in positions."""

    @property
    def requests(self) -> int: ...
    @property
    def beams(self) -> int: ...
    @property
    def encoder_length(self) -> float: ...
    @property
    def length(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel and its twin on random inputs; each returns its results. `dense`: the operations used where
    kernels are off, None if these are the twin."""

    kernel: Callable[[], Sequence[Tensor]]
    twin: Callable[[], Sequence[Tensor]]
    dense: Callable[[], Sequence[Tensor]] | None = None


Cost = Callable[..., tuple[float, ...]]
"""From a `StepLoad` and a call's arguments to bytes moved, FLOP needed, and, if partly filled tiles make them
more, FLOP done."""


@dataclass(frozen=True)
class CudaKernel(Generic[SizesT]):
    """`name`: of the operation. `cost`: see `Cost`. `kind`: the class of costs in
    `benchmarks/ledger/costs.py`. `example`: makes a `Case` on a device with given sizes: `large` are those of
    Florence-2-large, `small` those of the check at the start. `note`: tells rows for the same operation
    apart."""

    name: str
    cost: Cost
    example: Callable[[torch.device, torch.dtype, SizesT], Case]
    large: SizesT
    small: SizesT
    kind: str = "own"
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


def bytes_of(*tensors: Tensor) -> float:
    """Bytes of all elements."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
