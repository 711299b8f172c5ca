"""A row of the table of Triton kernels: what one is called, what defines it, what it costs, and an example.

For whatever goes over all of them: the check at the start, the tests, and the benchmarks that count kernels
on tensors without memory or time them on a GPU. Needs no triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

SizesT = TypeVar("SizesT")


class StepLoad(Protocol):
    """What a step reads and no shape shows: `requests` and `beams` in use, and mean positions of encoder
    states and of a beam's past."""

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
    """A kernel on random inputs, and its twin; each call gives what it computed. `dense`: what runs where the
    kernels are off, if that is not the twin."""

    kernel: Callable[[], Sequence[Tensor]]
    twin: Callable[[], Sequence[Tensor]]
    dense: Callable[[], Sequence[Tensor]] | None = None


Cost = Callable[..., tuple[float, ...]]
"""From a `StepLoad` and a call's arguments to bytes moved, FLOP, and FLOP that are done, if tiles that are
not full make them more."""


@dataclass(frozen=True)
class CudaKernel(Generic[SizesT]):
    """`name`: of the operation. `cost`: see `Cost`; `kind`: the class of costs, as
    `benchmarks/ledger/costs.py` names it. `example`: the kernel and its twin on a device, with some sizes:
    `large` are those of Florence-2-large, `small` those of the check at the start. `note`: what tells it from
    another row for the same operation."""

    name: str
    cost: Cost
    example: Callable[[torch.device, torch.dtype, SizesT], Case]
    large: SizesT
    small: SizesT
    kind: str = "own"
    note: str = ""

    @property
    def title(self) -> str:
        """What to call this row."""
        return f"{self.name}, {self.note}" if self.note else self.name

    def case(self, device: torch.device, dtype: torch.dtype, *, real: bool = True) -> Case:
        """The kernel and its twin at real sizes, or at those of the check at the start. The three kernels of
        the search share one case."""
        return self.example(device, dtype, self.large if real else self.small)

    def fitted(self, **sizes: int) -> CudaKernel[SizesT]:
        """The same, checked at the start with these of a model's sizes."""
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
