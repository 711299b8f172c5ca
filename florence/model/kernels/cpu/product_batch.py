"""Products with a weight of its own for each group of rows, all by one call of the kernel in `products.py`.

What a call costs beside its sums is paid once, however many groups there are. Knows tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from florence.model.kernels.cpu.openmp import HEAD, places
from florence.model.kernels.cpu.products import PanelWeight, Products

ALONE = 2**21
"""Multiplications of a batch for which no other thread is woken."""

PanelProduct = tuple[PanelWeight, int, int, int]
"""A weight, how many rows, the first row of the states, and the first row of the output."""


class ProductBatch:
    """Prepared for these parts; `add`: sums are added to the output, in place of being written."""

    def __init__(self, products: Products, parts: Sequence[PanelProduct], *, add: bool) -> None:
        made = [weight.job(rows) for weight, rows, _, _ in parts]
        self._products, self._scratch_bytes = products, max(scratch for scratch, _ in made)
        self._weights = [weight for weight, *_ in parts]  # the jobs hold their addresses
        self._jobs = np.array([[0] * len(HEAD) + job for _, job in made], np.int64)
        fields = (*HEAD, *products.fields)
        self._jobs[:, fields.index("more")] = np.arange(len(made))[::-1]
        self._source, self._target = fields.index("states"), fields.index("output")
        self._added = fields.index("residual") if add else None
        self._from = np.array([row for _, _, row, _ in parts])
        self._to = np.array([row for _, _, _, row in parts])
        work = sum(rows * weight.inner * weight.outputs for weight, rows, _, _ in parts)
        self._alone = work <= ALONE

    def run(self, states: Tensor, output: Tensor) -> None:
        """`states` [rows, inner] and `output` [rows, outputs] of the kernel's dtype, numbers of a row
        adjacent."""
        (source, source_row), (target, target_row) = places(states), places(output)
        self._write(self._source, source + source_row * self._from, source_row)
        there = target + target_row * self._to
        self._write(self._target, there, target_row)
        if self._added is not None:
            self._write(self._added, there, target_row)
        team, kernel = self._products.team, self._products.kernel.address
        team.run_all(kernel, self._jobs, self._scratch_bytes, alone=self._alone)

    def _write(self, field: int, addresses: NDArray[np.int64], row_bytes: int) -> None:
        """An address of each job, and the bytes from row to row, which are the field behind it."""
        self._jobs[:, field] = addresses
        self._jobs[:, field + 1] = row_bytes
