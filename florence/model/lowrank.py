"""Adapters beside the linear layers of one model: each row of a batch gets its own adapter's low-rank sum.

A layer with the weight W and an adapter's `up @ down` gives x a `W x + up (down x)`, in two thin products, so
that rows with different adapters, and rows with none, share the product with W (Punica, arXiv 2310.18547;
S-LoRA, arXiv 2311.03285). An adapter has a slot from 1 on; slot 0 is none. What is summed depends on a row's
own slot only. `StackedAdapters`, in plain PyTorch, has shapes that depend on no value, so that a CUDA graph
can hold them; `grouped_adapters.py` does no more work than there are rows with adapters. Knows tensors and
slots; nothing about files, names of adapters and requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.kernels.linear import Linear

RANK_MULTIPLE = 16
"""Ranks are padded with zeros to a multiple of this: kernels load whole vectors."""


@dataclass(frozen=True, slots=True)
class Factors:
    """What an adapter adds to one layer: `up @ down`, float32; `down` [rank, inputs], `up` [outputs, rank],
    which holds the scale."""

    down: Tensor
    up: Tensor

    def padded(self, rank: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both with zeros up to `rank`."""
        missing = rank - len(self.down)
        down, up = F.pad(self.down, (0, 0, 0, missing)), F.pad(self.up, (0, missing))
        return down.to(device, dtype), up.to(device, dtype)


class AdapterBank(ABC):
    """The adapters of one model that are in its memory, and the rows of the batch that is computed now. Not
    safe for threads: the one that computes uses it."""

    def __init__(self, model: nn.Module, slots: int) -> None:
        """`slots`: adapters at a time."""
        self.slots = slots
        self._linears = linear_layers(model)
        weight = next(model.parameters())
        self._dtype, self._device = weight.dtype, weight.device

    @abstractmethod
    def reserve(self, adapters: Sequence[Mapping[str, Factors]]) -> None:
        """Make room for these: layers and ranks. Adapters that need no more change no shape."""

    @abstractmethod
    def place(self, slot: int, layers: Mapping[str, Factors]) -> bool:
        """Put an adapter into a slot, in place of what was there. Whether tensors' shapes or places have
        changed, so that what was captured must not be replayed."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all adapters."""

    @abstractmethod
    def _begin(self, index: Tensor) -> None:
        """Compute for rows with the slots `index` [rows] from now on."""

    @abstractmethod
    def _end(self) -> None:
        """Compute without adapters from now on."""

    @contextmanager
    def applied(self, index: Tensor) -> Iterator[None]:
        """Within the context, the first dimension of a layer's input are rows with the slots `index` int64
        [rows], or as many equal parts of each."""
        self._begin(index)
        try:
            yield
        finally:
            self._end()


@dataclass(frozen=True, slots=True)
class LowRankKernels:
    """Products of single rows with their own slot's part of stacked matrices; the definitions are in
    `kernels/cuda/twins.py`."""

    shrink: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    expand: Callable[[Tensor, Tensor, Tensor, Tensor], None]


class StackedAdapters(AdapterBank):
    """All slots' matrices stacked into one for each layer: a product with all of `down`, zeros in place of
    what is not the row's own slot, a product with all of `up`. `index` is read from memory.

    `kernels`: for a decode step, in which a row is one state; they read the row's own slot only."""

    def __init__(self, model: nn.Module, slots: int, kernels: LowRankKernels | None = None) -> None:
        super().__init__(model, slots)
        self.kernels = kernels
        self.index: Tensor | None = None  # [rows]
        self._held: dict[int, Mapping[str, Factors]] = {}
        self._rank = RANK_MULTIPLE
        self._own: Tensor | None = None
        self._owners = self._slot_of_columns()

    @property
    def rank(self) -> int:
        """Of all adapters."""
        return self._rank

    def own(self, index: Tensor) -> Tensor:
        """[rows, slots * rank]: whether a column is the row's own slot's."""
        if self._own is None:
            self._own = index[:, None] == self._owners
        return self._own

    def reserve(self, adapters: Sequence[Mapping[str, Factors]]) -> None:
        self._lay_out(adapters)

    def place(self, slot: int, layers: Mapping[str, Factors]) -> bool:
        self._held[slot] = layers
        changed = self._lay_out([layers])
        for name, linear in self._linears.items():
            if isinstance(linear.beside, _StackedLayer):
                linear.beside.write(slot, self._rank, layers.get(name))
        return changed

    @property
    def nbytes(self) -> int:
        layers = (linear.beside for linear in self._linears.values())
        return sum(layer.nbytes for layer in layers if isinstance(layer, _StackedLayer))

    def _lay_out(self, adapters: Sequence[Mapping[str, Factors]]) -> bool:
        """Make the tensors wide enough, and add layers that have none; whether anything changed."""
        ranks = [len(factors.down) for layers in adapters for factors in layers.values()]
        rank, names = padded(max(ranks, default=1)), {name for layers in adapters for name in layers}
        has = {name for name, linear in self._linears.items() if linear.beside is not None}
        if rank <= self._rank and names <= has:
            return False
        self._rank = max(rank, self._rank)
        self._owners = self._slot_of_columns()
        for name in names | has:
            linear = self._linears[name]
            linear.beside = _StackedLayer(self, linear, self.slots * self._rank, self._dtype, self._device)
            for slot, layers in self._held.items():
                linear.beside.write(slot, self._rank, layers.get(name))
        return True

    def _slot_of_columns(self) -> Tensor:
        return torch.arange(1, self.slots + 1, device=self._device).repeat_interleave(self._rank)

    def _begin(self, index: Tensor) -> None:
        self.index = index

    def _end(self) -> None:
        self.index = self._own = None


class _StackedLayer:
    """One layer's stacked matrices: `down` [slots * rank, inputs], `up` [outputs, slots * rank]."""

    def __init__(
        self, bank: StackedAdapters, linear: Linear, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._bank = bank
        self.down = torch.zeros(width, linear.in_features, dtype=dtype, device=device)
        self.up = torch.zeros(linear.out_features, width, dtype=dtype, device=device)
        self._zero = torch.zeros((), dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def write(self, slot: int, rank: int, factors: Factors | None) -> None:
        """Replace one slot's part; None: by zeros."""
        columns = slice((slot - 1) * rank, slot * rank)
        if factors is None:
            self.down[columns].zero_()
            self.up[:, columns].zero_()
            return
        down, up = factors.padded(rank, self.down.dtype, self.down.device)
        self.down[columns].copy_(down)
        self.up[:, columns].copy_(up)

    def sums(self, states: Tensor) -> Tensor | None:
        index, kernels = self._bank.index, self._bank.kernels
        if index is None:
            return None
        if kernels is not None and states.numel() == len(index) * states.shape[-1]:
            total = states.new_zeros(len(index), len(self.up))
            self._add(kernels, index, total, states)
            return total.view(*states.shape[:-1], -1)
        own = self._bank.own(index)
        thin = F.linear(states.reshape(len(own), -1, states.shape[-1]), self.down)  # [rows, parts, width]
        result = F.linear(torch.where(own[:, None], thin, self._zero), self.up)
        return result.view(*states.shape[:-1], -1)

    def add_to(self, total: Tensor, states: Tensor) -> None:
        index, kernels = self._bank.index, self._bank.kernels
        if index is not None and kernels is not None and total.shape[:-1] == index.shape:
            self._add(kernels, index, total, states)
        elif (sums := self.sums(states)) is not None:
            total += sums

    def _add(self, kernels: LowRankKernels, index: Tensor, total: Tensor, states: Tensor) -> None:
        rows = states.reshape(len(index), -1)
        kernels.expand(kernels.shrink(rows, index, self.down, self._bank.rank), index, self.up, total)


def linear_layers(model: nn.Module) -> dict[str, Linear]:
    """The layers that an adapter may have beside it, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def padded(rank: int) -> int:
    """The rank with zeros up to `RANK_MULTIPLE`."""
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE
