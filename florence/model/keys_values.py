"""Keys and values of attention as plain tensors. Knows nothing about slots or beams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of one attention, each [rows, heads, length, head_dim]."""

    keys: Tensor
    values: Tensor

    def append(self, newer: KeysValues) -> KeysValues:
        """The same rows, with the positions of `newer` appended."""
        keys = torch.cat([self.keys, newer.keys], dim=2)
        return KeysValues(keys, torch.cat([self.values, newer.values], dim=2))

    def select(self, rows: Tensor) -> KeysValues:
        """Rows in the order of `rows` [new rows]: row i of the result is row `rows[i]`."""
        return KeysValues(self.keys.index_select(0, rows), self.values.index_select(0, rows))

    def expand(self, rows: int) -> KeysValues:
        """A view of a single row as `rows` rows."""
        return KeysValues(self.keys.expand(rows, -1, -1, -1), self.values.expand(rows, -1, -1, -1))


Cache = tuple[KeysValues, ...]
"""One `KeysValues` for each decoder layer."""
