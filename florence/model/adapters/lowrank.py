"""Adapters beside the linear layers of one model: each row of a batch gets its own adapter's low-rank sum.

A layer with the weight W and an adapter's `up @ down` computes `W x + up (down x)`, with two thin products,
so that rows with different adapters, and rows without one, share the product with W (Punica, arXiv
2310.18547; S-LoRA, arXiv 2311.03285). Adapters have slots from 1 on; slot 0 means no adapter. A row's sum
depends on its own slot only. `StackedAdapters`, in plain PyTorch, has shapes that depend on no value, so that
a CUDA graph can capture it; `grouped.py` computes only rows with adapters. Knows tensors and slots; knows
nothing about files, names of adapters or requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.kernels.linear import Beside, Linear
from florence.model.language import Attention

RANK_MULTIPLE = 16
"""Ranks are padded with zeros to a multiple of this: kernels load whole vectors."""


@dataclass(frozen=True, slots=True)
class Factors:
    """An adapter's factors for one layer, float32: `down` [rank, inputs] and `up` [outputs, rank], which
    includes the scale. `up @ down` is added to the weight."""

    down: Tensor
    up: Tensor

    def padded(self, rank: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both matrices, padded with zeros up to `rank`."""
        missing = rank - len(self.down)
        down, up = F.pad(self.down, (0, 0, 0, missing)), F.pad(self.up, (0, missing))
        return down.to(device, dtype), up.to(device, dtype)


class AdapterBank(ABC):
    """The adapters in the memory of one model's device, and the slots of the current batch's rows. Not
    thread-safe: only the thread that computes uses it."""

    def __init__(self, model: nn.Module, slots: int) -> None:
        """`slots`: how many adapters can be in memory at once."""
        self.slots = slots
        self._linears = linear_layers(model)
        weight = next(model.parameters())
        self._dtype, self._device = weight.dtype, weight.device

    @abstractmethod
    def reserve(self, adapters: Sequence[Mapping[str, Factors]]) -> None:
        """Make room for adapters with these layers and ranks. Placing adapters that fit into it later changes
        no shape."""

    @abstractmethod
    def place(self, slot: int, layers: Mapping[str, Factors]) -> bool:
        """Load an adapter into a slot, replacing the old one. Returns whether tensors were moved or resized,
        so that captured graphs must not be replayed."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all adapters in memory."""

    @abstractmethod
    def _begin(self, index: Tensor) -> None:
        """From now on a batch's rows have the slots `index` [rows]."""

    @abstractmethod
    def _end(self) -> None:
        """From now on compute without adapters."""

    @contextmanager
    def applied(self, index: Tensor) -> Iterator[None]:
        """Within the context, the first dimension of a layer's input is rows with the slots `index` int64
        [rows], or an equal number of rows for each of them."""
        self._begin(index)
        try:
            yield
        finally:
            self._end()


@dataclass(frozen=True, slots=True)
class LowRankKernels:
    """Products of each row with its slot's part of stacked matrices; defined in `kernels/cuda/twins.py`."""

    shrink: Callable[[Tensor, Tensor, Tensor, int, int], Tensor]
    expand: Callable[[Tensor, Tensor, Tensor, Tensor, int], None]


class StackedAdapters(AdapterBank):
    """The matrices of all slots stacked into one for each layer; each row's part is looked up by `index`, a
    tensor on the device. Where queries, keys and values are one product, so are their thin products.

    `kernels`: used in decode steps, where each row is a single state."""

    def __init__(self, model: nn.Module, slots: int, kernels: LowRankKernels | None = None) -> None:
        super().__init__(model, slots)
        self.kernels = kernels
        self.index: Tensor | None = None  # [rows]
        self._fused = fused_attentions(model)
        self._held: dict[int, Mapping[str, Factors]] = {}
        self._rank = RANK_MULTIPLE
        self._own: tuple[Tensor, Tensor] | None = None

    @property
    def rank(self) -> int:
        """The common rank that all adapters are padded to."""
        return self._rank

    def own(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """For each row, the position of its slot in the stack (arbitrary without an adapter), and whether it
        has no adapter."""
        if self._own is None:
            self._own = (index - 1).clamp_min(0), (index == 0)[:, None, None]
        return self._own

    def reserve(self, adapters: Sequence[Mapping[str, Factors]]) -> None:
        self._lay_out(adapters)

    def place(self, slot: int, layers: Mapping[str, Factors]) -> bool:
        self._held[slot] = layers
        changed = self._lay_out([layers])
        for name, beside in self._layers().items():
            beside.write(slot, self._rank, layers.get(name))
        return changed

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers().values())

    def _layers(self) -> dict[str, _StackedLayer]:
        layers = {name: linear.beside for name, linear in self._linears.items()}
        return {name: each for name, each in layers.items() if isinstance(each, _StackedLayer)}

    def _lay_out(self, adapters: Sequence[Mapping[str, Factors]]) -> bool:
        """Make the tensors wide enough, and add missing layers; returns whether anything changed."""
        ranks = [len(factors.down) for layers in adapters for factors in layers.values()]
        rank, names = padded(max(ranks, default=1)), {name for layers in adapters for name in layers}
        has = self._layers().keys()
        if rank <= self._rank and names <= has:
            return False
        self._rank = max(rank, self._rank)
        names |= has
        for attention, group in self._fused.items():
            if names.intersection(group):
                attention.beside = self._make(group)
                names = names.difference(group)
        for name in names:
            self._make([name])
        for slot, layers in self._held.items():
            for name, beside in self._layers().items():
                beside.write(slot, self._rank, layers.get(name))
        return True

    def _make(self, group: Sequence[str]) -> _StackedLayer:
        """Zeros for layers of equal sizes, adjacent in memory, so that they also work as one layer."""
        linears, width = [self._linears[name] for name in group], self.slots * self._rank
        inputs, outputs = linears[0].in_features, linears[0].out_features
        down, up = (
            torch.zeros(len(group) * rows, columns, dtype=self._dtype, device=self._device)
            for rows, columns in ((width, inputs), (outputs, width))
        )
        pairs = zip(down.chunk(len(group)), up.chunk(len(group)), strict=True)
        parts = [_StackedLayer(self, *pair) for pair in pairs]
        for linear, part in zip(linears, parts, strict=True):
            linear.beside = part
        return _StackedLayer(self, down, up, parts)

    def _begin(self, index: Tensor) -> None:
        self.index, self._own = index, None

    def _end(self) -> None:
        self.index = self._own = None


class _StackedLayer(Beside):
    """One layer's stacked matrices: `down` [slots * rank, inputs], `up` [outputs, slots * rank]; or those of
    several adjacent layers, its `parts`."""

    def __init__(
        self, bank: StackedAdapters, down: Tensor, up: Tensor, parts: Sequence[_StackedLayer] = ()
    ) -> None:
        super().__init__(len(up))
        self._bank, self._down, self._up, self._parts = bank, down, up, parts

    @property
    def nbytes(self) -> int:
        return self._down.nbytes + self._up.nbytes

    def write(self, slot: int, rank: int, factors: Factors | None) -> None:
        """Replace one slot's part; None writes zeros."""
        columns = slice((slot - 1) * rank, slot * rank)
        if factors is None:
            self._down[columns].zero_()
            self._up[:, columns].zero_()
            return
        down, up = factors.padded(rank, self._down.dtype, self._down.device)
        self._down[columns].copy_(down)
        self._up[:, columns].copy_(up)

    @property
    def is_used(self) -> bool:
        return self._bank.index is not None

    def _add(self, total: Tensor, states: Tensor) -> None:
        index, kernels = self._bank.index, self._bank.kernels
        if index is None:
            return
        if kernels is not None and len(states) == len(index):
            rank, parts = self._bank.rank, max(1, len(self._parts))
            thin = kernels.shrink(states, index, self._down, rank, parts)
            kernels.expand(thin, index, self._up, total, parts)
        elif self._parts:
            for part, piece in zip(self._parts, total.chunk(len(self._parts), dim=-1), strict=True):
                part.add_to(piece, states)
        else:
            rows, sums = (each.view(len(index), -1, each.shape[-1]) for each in (states, total))
            self._add_batched(rows, index, sums)

    def _add_batched(self, rows: Tensor, index: Tensor, total: Tensor) -> None:
        """Add each row's own product [rows, states of each, outputs], by batched products."""
        own, none = self._bank.own(index)
        down = self._down.view(-1, self._bank.rank, self._down.shape[1])[own]  # [rows, rank, inputs]
        up = self._up.view(len(self._up), -1, self._bank.rank)[:, own]  # [outputs, rows, rank]
        thin = (rows @ down.transpose(1, 2)).masked_fill_(none, 0)
        if total.dtype is thin.dtype:
            total.baddbmm_(thin, up.permute(1, 2, 0))
        else:
            total += thin @ up.permute(1, 2, 0)


def fused_attentions(model: nn.Module) -> dict[Attention, list[str]]:
    """The self-attentions that compute queries, keys and values by one product, each with the names of these
    three layers."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    return {
        attention: [f"{name}.{layer}" for layer in ("q_proj", "k_proj", "v_proj")]
        for name, attention in found.items()
        if attention.is_fused and name.endswith("self_attn")
    }


def linear_layers(model: nn.Module) -> dict[str, Linear]:
    """The layers that an adapter may have factors for, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def padded(rank: int) -> int:
    """The rank, rounded up to a multiple of `RANK_MULTIPLE`."""
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE
