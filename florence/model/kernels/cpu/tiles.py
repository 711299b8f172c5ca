"""Vector operations for attention on a CPU, as LLVM IR: on a tile of 16 keys or values, for one dtype and
head_dim.

LLVM splits a vector of head_dim elements into the machine's registers, so this code is independent of the
instruction set. numba turns each operation into a function that a kernel can call. Addresses are int64; rows
in working memory are float32, padded with zeros to a multiple of 16. Imports numba, so only
`attention_kernel.py` imports this module.

A bfloat16 row that is converted to float32 has its even elements in the first half and its odd ones in the
second: two instructions then convert a pair, the natural order takes four. Sums of products don't depend on
the order, and `store` restores it.
"""

from __future__ import annotations

import math

import torch
from llvmlite import ir
from numba import types

from florence.model.kernels.cpu.vectors import (
    F16,
    F32,
    FLOAT_BYTES,
    HIGH_HALF,
    I32,
    I64,
    Builder,
    Value,
    constant,
    floats,
    operation,
)

TILE = 16
"""Keys in a tile: one for each lane of a row of scores."""

LANES = floats(TILE)


class Tiles:
    """The operations; each attribute is called from a kernel with addresses in bytes."""

    def __init__(self, dtype: torch.dtype, head_dim: int) -> None:
        self._dtype, self._head_dim = dtype, head_dim
        self._width = -(-head_dim // TILE) * TILE
        self.row_bytes = self._width * FLOAT_BYTES
        address, number, nothing = types.int64, types.float32, types.void
        self.load = operation(self._load, nothing, (address, address))
        self.load_scaled = operation(self._load_scaled, nothing, (address, address, number))
        self.fetch = operation(self._fetch, nothing, (address,))
        self.clear = operation(self._clear, nothing, (address,))
        self.dots = operation(self._dots, nothing, (address, address, address))
        self.raise_top = operation(self._raise_top, nothing, (address, address))
        self.begin = operation(self._begin, nothing, (address, address))
        self.exclude = operation(self._exclude, nothing, (address, types.int64))
        self.settle_top = operation(self._settle_top, nothing, (address,))
        self.weigh = operation(self._weigh, nothing, (address, address, address))
        self.mix = operation(self._mix, nothing, (address, address, address))
        self.store = operation(self._store, nothing, (address, address, address))

    def _load(self, builder: Builder, source: Value, target: Value) -> None:
        """float32 row `target` = row `source` of the dtype."""
        builder.write(self._widened(builder, source), target)

    def _load_scaled(self, builder: Builder, source: Value, target: Value, scale: Value) -> None:
        """float32 row `target` = row `source` of the dtype, times a number."""
        row = self._widened(builder, source)
        builder.write(builder.fmul(row, builder.splat(scale, self._width)), target)

    def _fetch(self, builder: Builder, source: Value) -> None:
        """Prefetch a row after `source`."""
        builder.prefetch(source, self._head_dim * self._dtype.itemsize)

    def _clear(self, builder: Builder, target: Value) -> None:
        """float32 row `target` = 0."""
        builder.write(constant(F32, self._width, 0.0), target)

    def _dots(self, builder: Builder, query: Value, block: Value, scores: Value) -> None:
        """scores[0:16] = dot products of the row `query` with the 16 rows of `block`.

        Each product is first summed in 16 lanes; then adjacent lanes are added for pairs of rows, four times.
        This takes a third of the instructions of 16 separate sums; the sums end up in the order of the rows.
        """
        offsets = range(0, self.row_bytes, TILE * FLOAT_BYTES)
        query_parts = [builder.read(LANES, query, offset) for offset in offsets]
        sums = []
        for row in range(TILE):
            total = constant(F32, TILE, 0.0)
            for part, offset in zip(query_parts, offsets, strict=True):
                total = builder.fma(part, builder.read(LANES, block, row * self.row_bytes + offset), total)
            sums.append(total)
        even, odd = range(0, 2 * TILE, 2), range(1, 2 * TILE, 2)
        while len(sums) > 1:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [builder.fadd(builder.pick(pair, even), builder.pick(pair, odd)) for pair in pairs]
        builder.write(sums[0], scores)

    def _begin(self, builder: Builder, top: Value, total: Value) -> None:
        """top[0:16] = -inf, total[0:16] = 0."""
        builder.write(constant(F32, TILE, -math.inf), top)
        builder.write(constant(F32, TILE, 0.0), total)

    def _exclude(self, builder: Builder, scores: Value, count: Value) -> None:
        """scores[count:16] = -inf, for the padding of a tile."""
        lanes = ir.VectorType(I64, TILE)
        here = builder.icmp_signed("<", ir.Constant(lanes, list(range(TILE))), builder.splat(count, TILE))
        excluded = constant(F32, TILE, -math.inf)
        builder.write(builder.select(here, builder.read(LANES, scores), excluded), scores)

    def _raise_top(self, builder: Builder, scores: Value, top: Value) -> None:
        """top[0:16] = maximum of top[0:16] and scores[0:16], lane by lane; NaN scores are ignored."""
        builder.write(builder.greater(builder.read(LANES, scores), builder.read(LANES, top)), top)

    def _settle_top(self, builder: Builder, top: Value) -> None:
        """Every lane of top[0:16] = the maximum of its lanes."""
        greatest = builder.fold(builder.read(LANES, top), builder.greater)
        builder.write(builder.splat(greatest, TILE), top)

    def _weigh(self, builder: Builder, scores: Value, top: Value, total: Value) -> None:
        """scores[0:16] = exp(scores[0:16] - top[0:16]), and total[0:16] += the same."""
        x = builder.fsub(builder.read(LANES, scores), builder.read(LANES, top))
        weights = builder.exponential(x)
        builder.write(weights, scores)
        builder.write(builder.fadd(builder.read(LANES, total), weights), total)

    def _mix(self, builder: Builder, weights: Value, block: Value, target: Value) -> None:
        """Row `target` += weights[0:16] @ the 16 rows of `block`; in two accumulators, so that additions
        overlap."""
        row = ir.VectorType(F32, self._width)
        sums = [builder.read(row, target), constant(F32, self._width, 0.0)]
        for index in range(TILE):
            weight = builder.splat(builder.read(F32, weights, index * FLOAT_BYTES), self._width)
            value = builder.read(row, block, index * self.row_bytes)
            sums[index % 2] = builder.fma(weight, value, sums[index % 2])
        builder.write(builder.fadd(*sums), target)

    def _store(self, builder: Builder, source: Value, total: Value, target: Value) -> None:
        """Row `target` of the dtype = float32 row `source` / sum(total[0:16]), rounded to nearest even."""
        row = builder.read(ir.VectorType(F32, self._width), source)
        scale = builder.fdiv(F32(1.0), builder.fold(builder.read(LANES, total), builder.fadd))
        row = builder.fmul(row, builder.splat(scale, self._width))
        if self._dtype == torch.bfloat16:
            return builder.write(self._narrowed(builder, row), target, align=2)
        row = builder.pick((row, row), range(self._head_dim))
        if self._dtype == torch.float16:
            row = builder.fptrunc(row, ir.VectorType(F16, self._head_dim))
        return builder.write(row, target, align=self._dtype.itemsize)

    def _widened(self, builder: Builder, source: Value) -> Value:
        count = self._head_dim
        if self._dtype == torch.bfloat16:
            pairs = builder.read(ir.VectorType(I32, count // 2), source, align=2)
            row = builder.pick(builder.split_pairs(pairs), range(count))
        else:
            row = builder.widened(self._dtype, source, count)
        padding = [count] * (self._width - count)
        return builder.pick((row, constant(F32, count, 0.0)), [*range(count), *padding])

    def _narrowed(self, builder: Builder, row: Value) -> Value:
        """float32 elements, even ones first -> pairs of bfloat16 in the natural order."""
        half = self._head_dim // 2
        rounded = builder.bfloat16_bits(row)
        even = builder.pick((rounded, rounded), range(half))
        odd = builder.pick((rounded, rounded), range(half, 2 * half))
        even = builder.lshr(even, constant(I32, half, 16))
        return builder.or_(even, builder.and_(odd, constant(I32, half, HIGH_HALF)))
