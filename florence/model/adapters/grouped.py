"""Adapters on a CPU: only rows with adapters are computed, and ranks are not padded.

Adjacent rows with the same adapter are multiplied together: by the kernel in `kernels/cpu/low_rank.py` if the
bank is given one, else by PyTorch's products. With the kernel, a row's sum is bit for bit the
same whatever other rows are in the batch. Slots are read on the host, so this is not for graphs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.adapters.lowrank import AdapterBank, Factors
from florence.model.kernels.cpu.low_rank import LowRankLayer, LowRankSums, RowBlocks
from florence.model.kernels.linear import Beside, Linear

Run = tuple[int, int, int]
"""Adjacent rows of a batch with the same adapter: its slot, the first row, and the number of rows."""


class GroupedAdapters(AdapterBank):
    """`runs`: those of the current batch, which has `rows` rows; `present`: their slots; `kernel`: None where
    PyTorch computes the products."""

    def __init__(self, model: nn.Module, slots: int, kernel: LowRankSums | None = None) -> None:
        super().__init__(model, slots)
        self.kernel = kernel
        self.rows, self.runs, self.present = 0, list[Run](), frozenset[int]()
        self._latest: tuple[list[int], list[Run]] = [], []
        self._blocks = dict[int, RowBlocks]()
        self._held = dict[int, Mapping[str, Factors]]()

    def reserve(self, adapters: Sequence[Mapping[str, Factors]]) -> None:
        pass

    def place(self, slot: int, layers: Mapping[str, Factors]) -> bool:
        for name, linear in self._linears.items():
            beside = linear.beside
            if isinstance(beside, _LayerFactors):
                beside.clear(slot)
            elif name in layers:
                beside = self._layer_of(linear)
            else:
                continue
            if name in layers:
                factors = layers[name]
                beside.put(slot, *factors.padded(len(factors.down), self._dtype, self._device))
            linear.beside = beside if beside.factors else None
        self._held[slot] = layers
        return False

    @property
    def nbytes(self) -> int:
        held = (factors for layers in self._held.values() for factors in layers.values())
        return sum(self._dtype.itemsize * (each.down.numel() + each.up.numel()) for each in held)

    def blocks(self, kernel: LowRankSums, parts: int) -> RowBlocks:
        """The current batch as blocks, where each of its rows is `parts` rows of a layer's input."""
        if parts not in self._blocks:
            runs = [(slot, first * parts, rows * parts) for slot, first, rows in self.runs]
            self._blocks[parts] = RowBlocks(kernel, runs)
        return self._blocks[parts]

    def _layer_of(self, linear: Linear) -> _LayerFactors:
        if self.kernel is not None and self.kernel.fit(linear.in_features):
            return _KernelLayer(self, linear, self.kernel)
        return _PlainLayer(self, linear)

    def _begin(self, index: Tensor) -> None:
        slots = index.tolist()
        if slots != self._latest[0]:  # the same slots as before: the same runs and blocks
            self._latest = slots, list(_runs(slots))
            self._blocks.clear()
        self.rows, self.runs = len(slots), self._latest[1]
        self.present = frozenset(slot for slot, _, _ in self.runs)

    def _end(self) -> None:
        self.runs, self.present = [], frozenset()


class _LayerFactors(Beside):
    """One layer's factors. `factors`: by the slots of the adapters that have some for this layer."""

    factors: dict[int, tuple[Tensor, Tensor]]

    def __init__(self, bank: GroupedAdapters, linear: Linear) -> None:
        super().__init__(linear.out_features)
        self._bank = bank

    @abstractmethod
    def clear(self, slot: int) -> None:
        """Drop the slot's factors, if there are any."""

    @abstractmethod
    def put(self, slot: int, down: Tensor, up: Tensor) -> None:
        """Keep both matrices of an adapter in this slot."""

    @property
    def is_used(self) -> bool:
        return not self.factors.keys().isdisjoint(self._bank.present)


class _PlainLayer(_LayerFactors):
    """Computed by PyTorch's products."""

    def __init__(self, bank: GroupedAdapters, linear: Linear) -> None:
        super().__init__(bank, linear)
        self.factors = {}

    def clear(self, slot: int) -> None:
        self.factors.pop(slot, None)

    def put(self, slot: int, down: Tensor, up: Tensor) -> None:
        self.factors[slot] = down, up

    def _add(self, total: Tensor, states: Tensor) -> None:
        parts = len(states) // self._bank.rows
        for slot, first, count in self._bank.runs:
            if slot in self.factors:
                rows, (down, up) = slice(first * parts, (first + count) * parts), self.factors[slot]
                total[rows] += F.linear(F.linear(states[rows], down), up)


class _KernelLayer(_LayerFactors):
    """Computed by the project's kernel."""

    def __init__(self, bank: GroupedAdapters, linear: Linear, kernel: LowRankSums) -> None:
        super().__init__(bank, linear)
        self._kernel = kernel
        self._layer = LowRankLayer(kernel, bank.slots, linear.in_features, linear.out_features)
        self.factors = self._layer.factors

    def clear(self, slot: int) -> None:
        self._layer.clear(slot)

    def put(self, slot: int, down: Tensor, up: Tensor) -> None:
        self._layer.put(slot, down, up)

    def _add(self, total: Tensor, states: Tensor) -> None:
        if states.stride(-1) != 1:
            states = states.contiguous()
        blocks = self._bank.blocks(self._kernel, len(states) // self._bank.rows)
        self._layer.add(blocks, states, total)


def _runs(slots: Sequence[int]) -> Iterator[Run]:
    """The runs of rows with an adapter, given each row's slot."""
    first = 0
    for slot, rows in groupby(slots):
        count = len(list(rows))
        if slot:
            yield slot, first, count
        first += count
