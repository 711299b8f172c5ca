"""The project's GPU kernels, as the ledger and `gpu.py` find them: by one list, so that a new kernel appears
in both by itself.

The list is `KERNELS` of `florence.engine.device.cuda.kernels`; what they cost is in `own_costs.py`, by the
names of their operations. An operation of the project's that is not in the list counts as one kernel that
reads and writes all its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florence.engine.device.cuda.kernel import CudaKernel
from ledger.counting import Ledger, Operation, Rule


@dataclass(frozen=True, slots=True)
class Load:
    """The facts about a step that no shape shows. `encoder_length`, `length`: mean positions of a
    request's encoder states and of a beam's past; `requests` and `beams` are in use."""

    requests: int
    beams: int
    encoder_length: float
    length: float


Cost = Callable[..., tuple[float, ...]]
"""A function from a `Load` and a call's (fake) arguments to bytes moved, FLOP needed, and, if partly filled
tiles make them more, FLOP done."""


@dataclass(frozen=True, slots=True)
class OwnKernel:
    """One of the project's kernels. `name`: its operation's, for example "florence::own_attention"; `kind`:
    its class of costs in `costs.CLASSES`."""

    name: str
    cost: Cost
    kind: str


def kernel_table() -> Sequence[CudaKernel[Any]]:
    """The project's GPU kernels; empty without Triton."""
    try:
        from florence.engine.device.cuda.kernels import KERNELS
    except ModuleNotFoundError:
        return ()
    return KERNELS


def own_kernels() -> Sequence[OwnKernel]:
    """The kernels with their costs; empty without Triton. Raises `KeyError` for a kernel without a cost."""
    if not (table := kernel_table()):
        return ()
    from ledger.own_costs import COSTS

    return [OwnKernel(kernel.name, *COSTS[kernel.name]) for kernel in table]


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
