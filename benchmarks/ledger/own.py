"""The project's GPU kernels, as the ledger and `gpu.py` find them: by one list, so that a new kernel appears
in both by itself.

`florence.engine.device.cuda.kernels` has `KERNELS`, a sequence of `OwnKernel`. A kernel is a
custom operation (`torch.library.custom_op` or `triton_op`) with a fake implementation. An operation of the
project's that is not in the list counts as one kernel that reads and writes all its arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ledger.counting import Ledger, Operation, Rule

PACKAGE = "florence.engine.device.cuda.kernels"


@dataclass(frozen=True, slots=True)
class Load:
    """The facts about a step that no shape shows. `encoder_length`, `length`: mean positions of a
    request's encoder states and of a beam's past; `requests` and `beams` are in use."""

    requests: int
    beams: int
    encoder_length: float
    length: float


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on random inputs of real sizes, three ways; each call returns what it computed. `twin`: the
    plain definition. `dense`: what runs where the kernel is off, None where that is the twin."""

    kernel: Callable[[], Tensor | Sequence[Tensor]]
    twin: Callable[[], Tensor | Sequence[Tensor]]
    dense: Callable[[], Tensor | Sequence[Tensor]] | None = None


class OwnKernel(Protocol):
    """A kernel as the benchmarks see it. `name`: of its operation, "florence::own_attention"; `title`: of its
    figures. `kind`: the class of costs, as `costs.CLASSES` names it."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def cost(self, load: Load, *arguments: Any) -> tuple[float, ...]:
        """Bytes moved and FLOP of one call with these (fake) arguments, and FLOP that are done, if they are
        more."""

    def case(self, device: torch.device, dtype: torch.dtype, *, real: bool = True) -> Case:
        """Random inputs, of real sizes or of small ones."""


def own_kernels(package: str = PACKAGE) -> Sequence[OwnKernel]:
    """The list of kernels; empty without kernels or without Triton."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        return ()
    found: Sequence[OwnKernel] = getattr(module, "KERNELS", ())
    return found


Calls = list[tuple[OwnKernel, tuple[Any, ...]]]
"""Kernels with their (fake) arguments, in the order of their calls."""


def rules_of(kernels: Sequence[OwnKernel], load: Load, calls: Calls | None = None) -> Mapping[str, Rule]:
    """The rules for counting these kernels under a load. `calls`: gets the counted calls."""

    def rule(kernel: OwnKernel) -> Rule:
        def operation(arguments: tuple[Any, ...], result: Any) -> Operation:
            if calls is not None:
                calls.append((kernel, arguments))
            return _operation(kernel, arguments, load)

        return operation

    return {kernel.name: rule(kernel) for kernel in kernels}


def under_load(ledger: Ledger, calls: Calls, load: Load) -> Ledger:
    """The same work under another load; `calls` are those of its own kernels."""
    names, left = {kernel.name for kernel, _ in calls}, iter(calls)
    return Ledger(
        [_operation(*next(left), load) if each.name in names else each for each in ledger.operations]
    )


def _operation(kernel: OwnKernel, arguments: tuple[Any, ...], load: Load) -> Operation:
    """The cost of a call of a kernel."""
    moved, flop, *done = kernel.cost(load, *arguments)
    return Operation(kernel.name, kernel.kind, 1, moved, flop, *(done or [flop]))
