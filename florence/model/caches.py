"""The keys and values of all requests that are being decoded: buffers allocated once, written in place, never
moved.

A request has one *slot*, which holds the keys and values of its encoder states once for all its beams, and
one *row* for each beam, which holds the keys and values that this beam wrote at each position. A beam that
continues another one copies nothing: its *beam indirection* names the row that holds each position of its
past (TensorRT-LLM's cache indirection).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from florence.model.config import StackConfig
from florence.model.keys_values import KeysValues


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """How many requests and beams fit, and how long they may be.

    `slots`: requests. `rows`: beams of all requests. `encoder_room`: encoder positions of a slot.
    `decoder_room`: decoder positions of a row.
    """

    slots: int
    rows: int
    encoder_room: int
    decoder_room: int


class Caches:
    """Buffers of all decoder layers: `cross_*` [layers, slots, heads, encoder_room, head_dim], `self_*`
    [layers, rows, heads, decoder_room, head_dim]. `lazy`: let the system allocate pages on first write (CPU
    only).
    """

    def __init__(
        self,
        sizes: CacheSizes,
        stack: StackConfig,
        d_model: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        lazy: bool = False,
    ) -> None:
        head_dim = d_model // stack.heads
        cross = (stack.layers, sizes.slots, stack.heads, sizes.encoder_room, head_dim)
        own = (stack.layers, sizes.rows, stack.heads, sizes.decoder_room, head_dim)
        make = _lazy_zeros if lazy else partial(torch.zeros, device=device)
        buffers = [make(shape, dtype=dtype) for shape in (cross, cross, own, own)]
        self.sizes = sizes
        self.cross_keys, self.cross_values, self.self_keys, self.self_values = buffers

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All buffers."""
        return self.cross_keys, self.cross_values, self.self_keys, self.self_values

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def clear(self) -> None:
        """Set all slots and rows to zero."""
        for buffer in self.buffers:
            buffer.zero_()

    def write_cross_kv(self, slots: Tensor, cross_kv: Iterable[KeysValues]) -> None:
        """Write a batch's encoder keys and values, padding included, into `slots` int64 [requests], layer by
        layer. A slot may be listed more than once if its values are equal."""
        for layer, memory in enumerate(cross_kv):
            length = memory.keys.shape[2]
            self.cross_keys[layer, :, :, :length][slots] = memory.keys
            self.cross_values[layer, :, :, :length][slots] = memory.values

    def wipe(self, slot: int, rows: Sequence[int]) -> None:
        """Set a slot and rows to zero after a request that may have left NaN there: a masked position has
        weight zero, and zero times NaN is NaN."""
        for buffer in (self.cross_keys, self.cross_values):
            buffer[:, slot].zero_()
        for buffer in (self.self_keys, self.self_values):
            for row in rows:
                buffer[:, row].zero_()


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in host memory whose pages the system allocates on first write."""
    untouched = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)
