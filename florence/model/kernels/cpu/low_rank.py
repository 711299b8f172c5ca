"""Low-rank sums on a CPU: one call for all rows of a batch, each with the factors of its own slot.

Both products of a row are computed in one pass and added to the output. Sums are float32, and their order
does not depend on other rows. Knows tensors and slots; the compiled code is in `low_rank_kernel.py`. Needs
numba, which is imported when `LowRankSums` are made, not before.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from florence.model.kernels.cpu.objects import load_kernel
from florence.model.kernels.cpu.openmp import OpenMPTeam, places

TASKS = 2
"""Tasks for each thread: with fewer blocks of rows than that, blocks are split."""

MIN_PANELS = 32
"""Fewest panels of a task when blocks are split: each task computes the block's product with `down` again."""


class LowRankSums:
    """The kernel for one dtype of states and factors, compiled (about a second) unless cached on disk.

    `threads` as for `OpenMPTeam`. No gradients.
    """

    def __init__(self, dtype: torch.dtype, threads: int | None = None, lanes: int | None = None) -> None:
        from florence.model.kernels.cpu import low_rank_kernel
        from florence.model.kernels.cpu import panels as cpu_panels

        self.panels = cpu_panels.Panels(dtype, lanes or cpu_panels.widest_lanes())
        self.team = OpenMPTeam(threads)
        self.dtype, self.multiple, self.ranks = dtype, cpu_panels.LOAD, cpu_panels.RANKS
        self.block_rows = cpu_panels.BLOCK_ROWS
        self.scratch_bytes = partial(low_rank_kernel.scratch_bytes, self.panels)
        make_work = partial(low_rank_kernel.make_work, self.panels, dtype.itemsize)
        fields = low_rank_kernel.LowRankJob._fields
        self.kernel = load_kernel(f"low rank {dtype} {self.panels.width}", fields, make_work)

    def fit(self, inputs: int) -> bool:
        """Whether the kernel supports layers with `inputs` inputs."""
        return inputs % self.multiple == 0


class RowBlocks:
    """The slots of a batch's rows: `runs` of rows (slot, first row, number of rows), cut into blocks."""

    def __init__(self, sums: LowRankSums, runs: Iterable[tuple[int, int, int]]) -> None:
        limit = sums.block_rows
        cut = [
            (slot, start, min(limit, first + rows - start))
            for slot, first, rows in runs
            for start in range(first, first + rows, limit)
        ]
        self._table = np.array(cut, np.int64).reshape(-1, 3)  # the kernel reads it
        self.count, self.address = len(cut), self._table.ctypes.data


class LowRankLayer:
    """The factors of one layer, by slot from 1 on."""

    def __init__(self, sums: LowRankSums, slots: int, inputs: int, outputs: int) -> None:
        """Raises `ValueError` where the inputs don't fit the kernel."""
        if not sums.fit(inputs):
            raise ValueError(f"the kernel needs a multiple of {sums.multiple} inputs, not {inputs}")
        self._sums, self._inputs, self._outputs = sums, inputs, outputs
        self._panels = -(-outputs // sums.panels.width)
        self.factors = dict[int, tuple[Tensor, Tensor]]()  # kept alive: the table has their addresses
        self._table = np.zeros((1 + slots, 3), np.int64)  # the kernel reads it
        self._address, self._scratch_bytes = self._table.ctypes.data, 0

    def put(self, slot: int, down: Tensor, up: Tensor) -> None:
        """Keep `down` [rank, inputs] and `up` [outputs, rank], replacing the slot's old factors."""
        rank, whole = len(down), -(-len(down) // self._sums.ranks) * self._sums.ranks
        kept = F.pad(down, (0, 0, 0, whole - rank)), self._sums.panels.lay_out(up)
        self.factors[slot] = kept
        self._table[slot] = kept[0].data_ptr(), kept[1].data_ptr(), rank
        self._resize()

    def clear(self, slot: int) -> None:
        """Drop a slot's factors, if there are any."""
        self.factors.pop(slot, None)
        self._table[slot] = 0
        self._resize()

    def add(self, blocks: RowBlocks, states: Tensor, total: Tensor) -> None:
        """Add the sums of `states` [rows, inputs], in the kernel's dtype, to `total` [rows, outputs], in that
        dtype or float32. Both are contiguous within a row."""
        sums = self._sums
        wanted = TASKS * sums.team.threads
        splits = max(1, min(wanted // max(1, blocks.count), self._panels // MIN_PANELS))
        job = (  # the fields of `LowRankJob`
            *(blocks.count, blocks.address, self._address, splits),
            *(self._inputs, self._outputs, self._panels, *places(states), *places(total)),
            total.dtype is torch.float32,
        )
        sums.team.run(sums.kernel.address, self._scratch_bytes, job)

    def _resize(self) -> None:
        self._scratch_bytes = self._sums.scratch_bytes(int(self._table[:, 2].max()))
