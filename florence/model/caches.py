"""The keys and values of everybody who is decoded: buffers sized once, written in place, never moved.

A request has one *slot*, which holds its encoder's keys and values once for all its beams, and one *row* for
each beam, which holds what that beam's place wrote at each position. A beam that goes on from another one
leaves its past where it lies: its *ancestry* says in which row each position of it is found.
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
from florence.model.language import KeysValues


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
    """Buffers of all decoder layers: `cross_*` [layers, slots, heads, encoder_room, head_dim], `own_*`
    [layers, rows, heads, decoder_room, head_dim]. On a CPU, memory that nobody has written to is not used,
    unless it is `reserved`: then all of it is taken here.
    """

    def __init__(
        self,
        sizes: CacheSizes,
        stack: StackConfig,
        d_model: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        reserved: bool = False,
    ) -> None:
        head_dim = d_model // stack.heads
        cross = (stack.layers, sizes.slots, stack.heads, sizes.encoder_room, head_dim)
        own = (stack.layers, sizes.rows, stack.heads, sizes.decoder_room, head_dim)
        untouched = device.type == "cpu" and not reserved
        make = _untouched_zeros if untouched else partial(torch.zeros, device=device)
        buffers = [make(shape, dtype=dtype) for shape in (cross, cross, own, own)]
        self.sizes = sizes
        self.cross_keys, self.cross_values, self.own_keys, self.own_values = buffers

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.cross_keys, self.cross_values, self.own_keys, self.own_values

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def clear(self) -> None:
        """Set everybody's places to zero."""
        for buffer in self.buffers:
            buffer.zero_()

    def write_cross(self, slots: Tensor, cross: Iterable[KeysValues]) -> None:
        """Put the rows of a batch's encoder keys and values, padding and all, into `slots` int64 [rows],
        layer by layer. A slot may be there more than once, with equal rows."""
        for layer, memory in enumerate(cross):
            length = memory.keys.shape[2]
            self.cross_keys[layer, :, :, :length][slots] = memory.keys
            self.cross_values[layer, :, :, :length][slots] = memory.values

    def wipe(self, slot: int, rows: Sequence[int]) -> None:
        """Set a request's places to zero. For one that may have left values which are no numbers: a masked
        position counts zero times its value, and zero times NaN is NaN."""
        for buffer in (self.cross_keys, self.cross_values):
            buffer[:, slot].zero_()
        for buffer in (self.own_keys, self.own_values):
            for row in rows:
                buffer[:, row].zero_()


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on a CPU which are the system's own pages of zeros until they are written to."""
    untouched = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)
