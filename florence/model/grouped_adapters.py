"""Adapters on a CPU: rows are grouped by adapter, and each group is multiplied by its own matrices.

Work is done for rows with adapters only, with ranks as they are. Slots are read on the host, so this is not
for graphs. Where a layer has the project's kernel, all groups are multiplied by two calls of it, and a row's
sum is bit for bit the same whatever other rows are in the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.kernels.cpu.product_batch import ProductBatch
from florence.model.kernels.cpu.products import PanelWeight, Products
from florence.model.kernels.linear import Linear
from florence.model.lowrank import AdapterBank, Factors, LowRankKernels, StackedAdapters, padded

Rows = slice | Tensor
"""Rows of a batch: adjacent ones, or any by their indexes."""

WeightT = TypeVar("WeightT")
Found = Sequence[tuple[WeightT, WeightT, Rows]]
"""Both weights of each adapter in a batch, and its rows."""


def make_bank(
    model: nn.Module, slots: int, *, fixed_shapes: bool, kernels: LowRankKernels | None = None
) -> AdapterBank:
    """Room for so many adapters beside a model's layers; `fixed_shapes`: for graphs, with these `kernels`."""
    return StackedAdapters(model, slots, kernels) if fixed_shapes else GroupedAdapters(model, slots)


class GroupedAdapters(AdapterBank):
    """`groups`: of the `rows` of the batch that is computed now, by slot."""

    def __init__(self, model: nn.Module, slots: int) -> None:
        super().__init__(model, slots)
        self.groups: list[tuple[int, Rows]] = []
        self.rows = 0
        self._latest: tuple[list[int], list[tuple[int, Rows]]] = [], []
        self._held: dict[int, Mapping[str, Factors]] = {}

    def reserve(self, adapters: Sequence[Mapping[str, Factors]]) -> None:
        pass

    def place(self, slot: int, layers: Mapping[str, Factors]) -> bool:
        for name, linear in self._linears.items():
            beside = linear.beside
            if not isinstance(beside, _Layer):
                beside = _layer_of(self, linear)
            beside.clear(slot)
            if name in layers:
                beside.put(
                    slot, *layers[name].padded(padded(len(layers[name].down)), self._dtype, self._device)
                )
            linear.beside = beside if beside.parts else None
        self._held[slot] = layers
        return False

    @property
    def nbytes(self) -> int:
        held = (factors for layers in self._held.values() for factors in layers.values())
        return sum(self._dtype.itemsize * (each.down.numel() + each.up.numel()) for each in held)

    def _begin(self, index: Tensor) -> None:
        slots = index.tolist()
        if slots != self._latest[0]:  # the same batch as before keeps its groups, and what is prepared
            self._latest = slots, _groups(slots)
        self.rows, self.groups = len(slots), self._latest[1]

    def _end(self) -> None:
        self.groups = []


class _Layer(ABC, Generic[WeightT]):
    """One layer's parts, by slot."""

    def __init__(self, bank: GroupedAdapters, linear: Linear) -> None:
        self.parts: dict[int, tuple[WeightT, WeightT]] = {}
        self._bank, self._outputs = bank, linear.out_features

    def clear(self, slot: int) -> None:
        """Drop an adapter, if it is there."""
        self.parts.pop(slot, None)

    @abstractmethod
    def put(self, slot: int, down: Tensor, up: Tensor) -> None:
        """Keep both matrices of an adapter."""

    def sums(self, states: Tensor) -> Tensor | None:
        if not any(slot in self.parts for slot, _ in self._bank.groups):
            return None
        total = states.new_zeros(*states.shape[:-1], self._outputs)
        self.add_to(total, states)
        return total

    def add_to(self, total: Tensor, states: Tensor) -> None:
        found = [(*self.parts[slot], rows) for slot, rows in self._bank.groups if slot in self.parts]
        if found:
            rows = self._bank.rows
            split = states.reshape(rows, -1, states.shape[-1])  # [rows, parts, inputs]
            self._add(found, split, total.view(rows, -1, self._outputs))

    @abstractmethod
    def _add(self, found: Found[WeightT], states: Tensor, total: Tensor) -> None:
        """Add the products of these adapters, each to its rows."""


class _PlainLayer(_Layer[Tensor]):
    """By PyTorch's products."""

    def put(self, slot: int, down: Tensor, up: Tensor) -> None:
        self.parts[slot] = down, up

    def _add(self, found: Found[Tensor], states: Tensor, total: Tensor) -> None:
        for down, up, rows in found:
            _add_rows(total, rows, F.linear(F.linear(states[rows], down), up))


class _PanelLayer(_Layer[PanelWeight]):
    """By the kernel that computes the layer itself."""

    def __init__(self, bank: GroupedAdapters, linear: Linear, kernel: Products) -> None:
        super().__init__(bank, linear)
        self._kernel = kernel
        self._prepared: tuple[object, int, ProductBatch, ProductBatch] | None = None  # for groups and parts

    def clear(self, slot: int) -> None:
        super().clear(slot)
        self._prepared = None

    def put(self, slot: int, down: Tensor, up: Tensor) -> None:
        self.parts[slot] = PanelWeight(self._kernel, down, None), PanelWeight(self._kernel, up, None)

    def _add(self, found: Found[PanelWeight], states: Tensor, total: Tensor) -> None:
        adjacent = [each for each in found if isinstance(each[2], slice)]
        if adjacent and total.dtype == states.dtype:
            self._add_adjacent(adjacent, states, total)
            found = [each for each in found if isinstance(each[2], Tensor)]
        for down, up, rows in found:
            _add_rows(total, rows, up.product(down.product(states[rows])))

    def _add_adjacent(self, found: Found[PanelWeight], states: Tensor, total: Tensor) -> None:
        """Groups of adjacent rows: two calls, prepared once for all steps of the same batch."""
        if states.stride(-1) != 1:
            states = states.contiguous()
        parts = states.shape[1]
        key = self._bank.groups, parts
        if self._prepared is None or self._prepared[0] is not key[0] or self._prepared[1] != parts:
            bounds = [
                (rows.start * parts, rows.stop * parts) for _, _, rows in found if isinstance(rows, slice)
            ]
            first, second = [], []
            for (down, up, _), (start, end) in zip(found, bounds, strict=True):
                first.append((down, end - start, start, start))
                second.append((up, end - start, start, start))
            batches = (
                ProductBatch(self._kernel, first, add=False),
                ProductBatch(self._kernel, second, add=True),
            )
            self._prepared = *key, *batches
        width = max(down.outputs for down, _, _ in found)
        rows = states.flatten(0, 1)
        thin = rows.new_empty(len(rows), width)
        self._prepared[2].run(rows, thin)
        self._prepared[3].run(thin, total.view(-1, self._outputs))


def _layer_of(bank: GroupedAdapters, linear: Linear) -> _PlainLayer | _PanelLayer:
    packed = linear.packed
    return (
        _PanelLayer(bank, linear, packed.products)
        if isinstance(packed, PanelWeight)
        else _PlainLayer(bank, linear)
    )


def _add_rows(total: Tensor, rows: Rows, added: Tensor) -> None:
    if isinstance(rows, Tensor):
        total.index_add_(0, rows, added.to(total.dtype))
    else:
        total[rows] += added


def _groups(slots: Sequence[int]) -> list[tuple[int, Rows]]:
    """Each slot that is in use, and its rows."""
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot:
            rows.setdefault(slot, []).append(row)
    return [(slot, _rows(found)) for slot, found in rows.items()]


def _rows(found: list[int]) -> Rows:
    first, end = found[0], found[-1] + 1
    return slice(first, end) if end - first == len(found) else torch.tensor(found)
