"""Vector instructions for products with weights on a CPU, as LLVM IR: one panel of outputs at a time.

A panel holds the weights of `width` outputs, [in_features, width]. The sums of a few rows stay in registers
while the panel is read, so that each weight is loaded and converted to float32 once for all these rows. Sums
are float32 and added in the order of the inputs for any number of rows, so a row's result does not depend on
other rows. Imports numba.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from florence.model.kernels.cpu.vectors import (
    F16,
    F32,
    FLOAT_BYTES,
    I16,
    I32,
    I64,
    Builder,
    Operation,
    Value,
    constant,
    floats,
    operation,
)

LOAD = 16
"""Elements of a row that are converted at once; the length of rows is a multiple of it."""

RANKS = 4
"""Rows of a factor that are multiplied at once (`Panels.dots`)."""

BLOCK_ROWS = 24
"""Rows that the result of `Panels.dots` has room for."""

CHUNK = 256
"""Elements of a row that are adjacent in working memory, so that rows have a constant stride. Each chunk is
summed separately, since long float32 sums lose precision."""

ROW_BYTES = CHUNK * FLOAT_BYTES + 64
"""The stride of these rows in bytes; not a multiple of 4,096, or all rows would compete for the same cache
sets."""

ERFC = (  # W. H. Press et al., Numerical Recipes, section 6.2: relative error below 1.2e-7 everywhere
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
    -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223,
)  # fmt: skip


class Panels:
    """The operations for one dtype of states and weights, with registers of `lanes` float32.

    `rows`: numbers of rows whose sums fit into the registers, the largest first; `tiles`: the same for `dots`
    and `spread`.
    """

    def __init__(self, dtype: torch.dtype, lanes: int) -> None:
        self._dtype, self._lanes = dtype, lanes
        self.width = 2 * lanes
        self.rows = (12, 8, 4) if lanes == 16 else (6, 4, 2)
        self.tiles = (6, 3, 1) if lanes == 16 else (3, 2, 1)
        self.weight_bytes = self.width * dtype.itemsize  # bytes of one input
        address, nothing = types.int64, types.void
        self.load = operation(self._load, nothing, (address, address))
        self.clear = operation(self._clear, nothing, (address,))
        self.copy = operation(self._copy, nothing, (address, address))
        self.gelu = operation(self._gelu, nothing, (address,))
        self.add = operation(self._add, nothing, (address, address))
        self.store = operation(self._store, nothing, (address, address))

    def lay_out(self, weight: Tensor) -> Tensor:
        """A weight [outputs, inner] as contiguous panels, padded with outputs of zeros."""
        (outputs, inner), width = weight.shape, self.width
        count = -(-outputs // width)
        padded = weight.new_zeros(count * width, inner)
        padded[:outputs] = weight
        halves = padded.view(count, 2, width // 2, inner)  # [panels, half, lanes, inner]
        order = (0, 3, 2, 1) if weight.dtype == torch.bfloat16 else (0, 3, 1, 2)
        return halves.permute(order).contiguous()

    def accumulate(self, rows: int) -> Operation:
        """An operation: sums [rows, width] += states [rows, count] @ weights [count, width]; rows of the
        float32 states have a stride of ROW_BYTES."""
        return operation(partial(self._accumulate, rows), types.void, (types.int64,) * 4)

    def _accumulate(
        self, rows: int, builder: Builder, states: Value, weights: Value, sums: Value, count: Value
    ) -> None:
        lanes, kind, half_bytes = self._lanes, floats(self._lanes), self._lanes * FLOAT_BYTES

        def add_products(_: Value, carried: list[Value]) -> list[Value]:
            state, weight, *totals = carried
            halves = self._weights(builder, weight)
            builder.prefetch(weight, self.weight_bytes)
            new = []
            for row in range(rows):
                number = builder.splat(builder.read(F32, state, row * ROW_BYTES), lanes)
                new += [builder.fma(half, number, totals[2 * row + side]) for side, half in enumerate(halves)]
            return [
                builder.add(state, I64(FLOAT_BYTES)),
                builder.add(weight, I64(self.weight_bytes)),
                *new,
            ]

        zeros = [constant(F32, lanes, 0.0)] * (2 * rows)
        totals = builder.repeat(count, 1, [states, weights, *zeros], add_products)[2:]
        for place, total in enumerate(totals):
            before = builder.read(kind, sums, place * half_bytes)
            builder.write(builder.fadd(before, total), sums, place * half_bytes)

    def dots(self, rows: int) -> Operation:
        """An operation (states, row stride in bytes, factors, inner, target): products of states [rows,
        inner] with factors [RANKS, inner], both of the dtype, to float32 target [RANKS, BLOCK_ROWS]."""
        return operation(partial(self._dots, rows), types.void, (types.int64,) * 5)

    def _dots(
        self, rows: int, builder: Builder, states: Value, row: Value, factors: Value, inner: Value, to: Value
    ) -> None:
        lanes, itemsize = self._lanes, self._dtype.itemsize
        size = builder.mul(inner, I64(itemsize))
        sources = [builder.add(states, builder.mul(row, I64(place))) for place in range(rows)]
        sources += [builder.add(factors, builder.mul(size, I64(place))) for place in range(RANKS)]

        def add_products(offset: Value, totals: list[Value]) -> list[Value]:
            numbers = [builder.widened(self._dtype, builder.add(source, offset), lanes) for source in sources]
            pairs = product(numbers[rows:], numbers[:rows])
            return [builder.fma(*pair, total) for pair, total in zip(pairs, totals, strict=True)]

        zeros = [constant(F32, lanes, 0.0)] * (rows * RANKS)
        for place, total in enumerate(builder.repeat(size, lanes * itemsize, zeros, add_products)):
            there = (place // rows * BLOCK_ROWS + place % rows) * FLOAT_BYTES
            builder.write(builder.fold(total, builder.fadd), to, there)

    def spread(self, rows: int, *, wide: bool) -> Operation:
        """An operation (numbers, rank, weights, output, row stride in bytes): adds the products of float32
        numbers [rank, BLOCK_ROWS] with a panel of weights [rank, width] to output [rows, width], which is
        float32 (`wide`) or of the dtype."""
        return operation(partial(self._spread, rows, wide), types.void, (types.int64,) * 5)

    def _spread(
        self, rows: int, wide: bool, builder: Builder,
        numbers: Value, rank: Value, weights: Value, output: Value, row: Value,
    ) -> None:  # fmt: skip
        lanes, weight_bytes = self._lanes, I64(self.weight_bytes)

        def add_products(place: Value, totals: list[Value]) -> list[Value]:
            weight = builder.add(weights, builder.mul(place, weight_bytes))
            here = builder.add(numbers, builder.mul(place, I64(BLOCK_ROWS * FLOAT_BYTES)))
            builder.prefetch(weight, self.weight_bytes)
            halves = self._weights(builder, weight)
            each = [builder.splat(builder.read(F32, here, at * FLOAT_BYTES), lanes) for at in range(rows)]
            pairs = product(each, halves)
            return [builder.fma(*pair, total) for pair, total in zip(pairs, totals, strict=True)]

        zeros = [constant(F32, lanes, 0.0)] * (2 * rows)
        totals = builder.repeat(rank, 1, zeros, add_products)
        for at in range(rows):
            there = builder.add(output, builder.mul(row, I64(at)))
            whole = builder.pick(totals[2 * at : 2 * at + 2], range(self.width))
            before = (
                builder.read(floats(self.width), there)
                if wide
                else builder.widened(self._dtype, there, self.width)
            )
            result = builder.fadd(before, whole)
            builder.write(result, there) if wide else self._write(builder, result, there)

    def _weights(self, builder: Builder, source: Value) -> list[Value]:
        """The weights of one input as float32: of the first half of the outputs, and of the second."""
        lanes = self._lanes
        if self._dtype == torch.bfloat16:  # stored in pairs, one output of each half
            return builder.split_pairs(builder.read(ir.VectorType(I32, lanes), source))
        return [builder.widened(self._dtype, source, lanes, at) for at in (0, lanes * self._dtype.itemsize)]

    def _load(self, builder: Builder, source: Value, target: Value) -> None:
        """float32 target[0:16] = source[0:16] of the dtype."""
        builder.write(builder.widened(self._dtype, source, LOAD), target)

    def _clear(self, builder: Builder, target: Value) -> None:
        """float32 target[0:16] = 0."""
        builder.write(constant(F32, LOAD, 0.0), target)

    def _copy(self, builder: Builder, source: Value, target: Value) -> None:
        """float32 target[0:width] = source[0:width]."""
        builder.write(builder.read(floats(self.width), source), target)

    def _add(self, builder: Builder, source: Value, target: Value) -> None:
        """float32 target[0:width] += source[0:width] of the dtype."""
        total = builder.read(floats(self.width), target)
        builder.write(builder.fadd(total, builder.widened(self._dtype, source, self.width)), target)

    def _store(self, builder: Builder, source: Value, target: Value) -> None:
        """target[0:width] of the dtype = float32 source[0:width], rounded to nearest even."""
        self._write(builder, builder.read(floats(self.width), source), target)

    def _write(self, builder: Builder, row: Value, target: Value) -> None:
        """target[0:width] of the dtype = float32 `row`, rounded to nearest even."""
        if self._dtype == torch.bfloat16:
            bits = builder.lshr(builder.bfloat16_bits(row), constant(I32, self.width, 16))
            row = builder.trunc(bits, ir.VectorType(I16, self.width))
        elif self._dtype == torch.float16:
            row = builder.fptrunc(row, ir.VectorType(F16, self.width))
        builder.write(row, target, align=self._dtype.itemsize)

    def _gelu(self, builder: Builder, target: Value) -> None:
        """float32 target[0:width] = x * erfc(-x / sqrt(2)) / 2 of each x there."""
        number = partial(constant, F32, self.width)
        x = builder.read(floats(self.width), target)
        negative = builder.fcmp_ordered("<", x, number(0))
        size = builder.select(negative, builder.fsub(number(0), x), x)
        z = builder.fmul(size, number(0.5**0.5))
        t = builder.fdiv(number(2), builder.fadd(z, number(2)))
        exponent = number(ERFC[0])
        for factor in ERFC[1:]:
            exponent = builder.fma(exponent, t, number(factor))
        exponent = builder.fma(builder.fsub(number(0), z), z, exponent)
        tail = builder.fmul(t, builder.exponential(exponent))  # erfc of a non-negative number
        share = builder.select(negative, tail, builder.fsub(number(2), tail))
        builder.write(builder.fmul(builder.fmul(x, number(0.5)), share), target)


def widest_lanes() -> int:
    """How many float32 the widest registers of this processor hold."""
    return 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
