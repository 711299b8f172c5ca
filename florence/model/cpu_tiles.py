"""Vector instructions for attention on a CPU: what a tile of 16 keys or values needs, as LLVM code for one
dtype and one head_dim.

LLVM splits a vector of head_dim numbers into the registers that the machine has, so nothing here names an
instruction set. numba turns each operation into a function that a kernel can call; addresses are int64, rows
of numbers in working memory are float32 and padded with zeros to a multiple of 16. Imports numba: only
`cpu_attention` imports this module, when it is asked for a kernel.

Rows of bfloat16 keep their even numbers in their first half and their odd ones in the second while they are
float32: two instructions widen two numbers each time, where the natural order takes four. Sums of products
don't care, and `store` puts the result back in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE = 16
"""Keys in a tile: as many as a row of scores has lanes."""

FLOAT_BYTES = 4
I32, I64, F16, F32 = ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()
LANES = ir.VectorType(F32, TILE)
HIGH_HALF = 0xFFFF0000
ROUNDER = 1.5 * 2**23
LOG2_HIGH = 0.693359375  # log(2) in so few bits that its products with whole numbers are exact

Value = Any  # llvmlite has no type information
Builder = Any
Operation = Any  # a function that numba can compile into a kernel


class Tiles:
    """The operations; each attribute is called from a kernel with addresses in bytes."""

    def __init__(self, dtype: torch.dtype, head_dim: int, ahead_bytes: int) -> None:
        self._dtype, self._head_dim, self._ahead_bytes = dtype, head_dim, ahead_bytes
        self._width = -(-head_dim // TILE) * TILE
        self.row_bytes = self._width * FLOAT_BYTES
        address, number, nothing = types.int64, types.float32, types.void
        self.load = _operation(self._load, nothing, (address, address))
        self.load_scaled = _operation(self._load_scaled, nothing, (address, address, number))
        self.fetch = _operation(self._fetch, nothing, (address,))
        self.clear = _operation(self._clear, nothing, (address,))
        self.dots = _operation(self._dots, nothing, (address, address, address))
        self.raise_top = _operation(self._raise_top, nothing, (address, address))
        self.begin = _operation(self._begin, nothing, (address, address))
        self.exclude = _operation(self._exclude, nothing, (address, types.int64))
        self.settle_top = _operation(self._settle_top, nothing, (address,))
        self.weigh = _operation(self._weigh, nothing, (address, address, address))
        self.mix = _operation(self._mix, nothing, (address, address, address))
        self.store = _operation(self._store, nothing, (address, address, address))

    def _load(self, builder: Builder, source: Value, target: Value) -> None:
        """float32 row `target` = row `source` of the dtype."""
        _write(builder, self._widened(builder, source), target)

    def _load_scaled(self, builder: Builder, source: Value, target: Value, scale: Value) -> None:
        """float32 row `target` = row `source` of the dtype, times a number."""
        row = self._widened(builder, source)
        _write(builder, builder.fmul(row, _splat(builder, scale, self._width)), target)

    def _fetch(self, builder: Builder, source: Value) -> None:
        """Ask memory for the row that lies `ahead_bytes` behind `source`; it may lie anywhere."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        for line in range(0, self._head_dim * self._dtype.itemsize, 64):
            place = _pointer(builder, source, ir.IntType(8), self._ahead_bytes + line)
            builder.call(prefetch, [place, I32(0), I32(2), I32(1)])  # to read, into the second cache, data

    def _clear(self, builder: Builder, target: Value) -> None:
        """float32 row `target` = 0."""
        _write(builder, _constant(F32, self._width, 0.0), target)

    def _dots(self, builder: Builder, query: Value, block: Value, scores: Value) -> None:
        """scores[0:16] = products of the row `query` with the 16 rows of `block`.

        Each product stays spread over 16 lanes; then neighbours are added in pairs of rows, four times, which
        takes a third of the instructions of 16 sums for themselves and leaves the sums in the rows' order.
        """
        places = range(0, self.row_bytes, TILE * FLOAT_BYTES)
        query_parts = [_read(builder, LANES, query, place) for place in places]
        sums = []
        for row in range(TILE):
            total = _constant(F32, TILE, 0.0)
            for part, place in zip(query_parts, places, strict=True):
                total = _fma(builder, part, _read(builder, LANES, block, row * self.row_bytes + place), total)
            sums.append(total)
        even, odd = range(0, 2 * TILE, 2), range(1, 2 * TILE, 2)
        while len(sums) > 1:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [builder.fadd(_pick(builder, pair, even), _pick(builder, pair, odd)) for pair in pairs]
        _write(builder, sums[0], scores)

    def _begin(self, builder: Builder, top: Value, total: Value) -> None:
        """top[0:16] = the least there is, total[0:16] = 0."""
        _write(builder, _constant(F32, TILE, -math.inf), top)
        _write(builder, _constant(F32, TILE, 0.0), total)

    def _exclude(self, builder: Builder, scores: Value, count: Value) -> None:
        """scores[count:16] = the least there is, for keys that are not there."""
        lanes = ir.VectorType(I64, TILE)
        here = builder.icmp_signed("<", ir.Constant(lanes, list(range(TILE))), _splat(builder, count, TILE))
        least = _constant(F32, TILE, -math.inf)
        _write(builder, builder.select(here, _read(builder, LANES, scores), least), scores)

    def _raise_top(self, builder: Builder, scores: Value, top: Value) -> None:
        """top[0:16] = the greater of top[0:16] and scores[0:16]; one that is not a number is passed over."""
        _write(builder, _greater(builder, _read(builder, LANES, scores), _read(builder, LANES, top)), top)

    def _settle_top(self, builder: Builder, top: Value) -> None:
        """top[0:16] = the greatest of top[0:16], everywhere."""
        greatest = _fold(builder, _read(builder, LANES, top), _greater)
        _write(builder, _splat(builder, greatest, TILE), top)

    def _weigh(self, builder: Builder, scores: Value, top: Value, total: Value) -> None:
        """scores[0:16] = exp(scores[0:16] - top[0:16]), and total[0:16] += the same."""
        x = builder.fsub(_read(builder, LANES, scores), _read(builder, LANES, top))
        weights = _exponential(builder, x)
        _write(builder, weights, scores)
        _write(builder, builder.fadd(_read(builder, LANES, total), weights), total)

    def _mix(self, builder: Builder, weights: Value, block: Value, target: Value) -> None:
        """Row `target` += weights[0:16] @ the 16 rows of `block`; two sums, so that one needn't wait."""
        row = ir.VectorType(F32, self._width)
        sums = [_read(builder, row, target), _constant(F32, self._width, 0.0)]
        for index in range(TILE):
            weight = _splat(builder, _read(builder, F32, weights, index * FLOAT_BYTES), self._width)
            value = _read(builder, row, block, index * self.row_bytes)
            sums[index % 2] = _fma(builder, weight, value, sums[index % 2])
        _write(builder, builder.fadd(*sums), target)

    def _store(self, builder: Builder, source: Value, total: Value, target: Value) -> None:
        """Row `target` of the dtype = float32 row `source` / sum(total[0:16]), rounded to nearest even."""
        row = _read(builder, ir.VectorType(F32, self._width), source)
        scale = builder.fdiv(F32(1.0), _fold(builder, _read(builder, LANES, total), type(builder).fadd))
        row = builder.fmul(row, _splat(builder, scale, self._width))
        if self._dtype == torch.bfloat16:
            return _write(builder, self._narrowed(builder, row), target, align=2)
        row = _pick(builder, (row, row), range(self._head_dim))
        if self._dtype == torch.float16:
            row = builder.fptrunc(row, ir.VectorType(F16, self._head_dim))
        return _write(builder, row, target, align=self._dtype.itemsize)

    def _widened(self, builder: Builder, source: Value) -> Value:
        count = self._head_dim
        if self._dtype == torch.bfloat16:
            pairs = _read(builder, ir.VectorType(I32, count // 2), source, align=2)
            even = builder.shl(pairs, _constant(I32, count // 2, 16))
            odd = builder.and_(pairs, _constant(I32, count // 2, HIGH_HALF))
            row = builder.bitcast(_pick(builder, (even, odd), range(count)), ir.VectorType(F32, count))
        elif self._dtype == torch.float16:
            row = _read(builder, ir.VectorType(F16, count), source, align=2)
            row = builder.fpext(row, ir.VectorType(F32, count))
        else:
            row = _read(builder, ir.VectorType(F32, count), source)
        padding = [count] * (self._width - count)
        return _pick(builder, (row, _constant(F32, count, 0.0)), [*range(count), *padding])

    def _narrowed(self, builder: Builder, row: Value) -> Value:
        """float32 numbers, even ones first -> pairs of bfloat16 in their order."""
        width, half = self._width, self._head_dim // 2
        bits = builder.bitcast(row, ir.VectorType(I32, width))
        last = builder.and_(builder.lshr(bits, _constant(I32, width, 16)), _constant(I32, width, 1))
        rounded = builder.add(bits, builder.add(last, _constant(I32, width, 0x7FFF)))
        not_a_number = builder.fcmp_unordered("uno", row, row)
        rounded = builder.select(not_a_number, _constant(I32, width, 0x7FC00000), rounded)
        even = _pick(builder, (rounded, rounded), range(half))
        odd = _pick(builder, (rounded, rounded), range(half, 2 * half))
        even = builder.lshr(even, _constant(I32, half, 16))
        return builder.or_(even, builder.and_(odd, _constant(I32, half, HIGH_HALF)))


def take_next() -> Operation:
    """An operation: the int64 at an address, which then is one greater, for one of many threads."""

    def emit(builder: Builder, counter: Value) -> Value:
        return builder.atomic_rmw("add", _pointer(builder, counter, I64), I64(1), "monotonic")

    return _operation(emit, types.int64, (types.int64,))


def as_pointer() -> Operation:
    """An operation: an address as a pointer that `numba.carray` takes."""

    def emit(builder: Builder, address: Value) -> Value:
        return builder.inttoptr(address, ir.IntType(8).as_pointer())

    return _operation(emit, types.voidptr, (types.int64,))


def _operation(emit: Callable[..., Value], result: Any, arguments: tuple[Any, ...]) -> Operation:
    """What `emit(builder, *values)` builds, as a function for numba."""

    def generate(context: Any, builder: Builder, _signature: Any, values: Any) -> Value:
        value = emit(builder, *values)
        return context.get_dummy_value() if value is None else value

    made = result(*arguments), generate
    takers: list[Callable[..., Any]] = [  # numba reads the names of a function's arguments
        lambda typing_context, a: made,
        lambda typing_context, a, b: made,
        lambda typing_context, a, b, c: made,
    ]
    return intrinsic(takers[len(arguments) - 1])


def _exponential(builder: Builder, x: Value) -> Value:
    """exp of 16 float32 that are not above zero: 2 ** n * exp(rest) with |rest| <= log(2) / 2.

    Adding 1.5 * 2 ** 23 rounds to a whole number n, and leaves it in the last bits. Scores so far below the
    greatest that n would be too small for float32 weigh exp(-87); what is not a number stays so.
    """

    def number(value: float) -> Value:
        return _constant(F32, TILE, float(np.float32(value)))

    x = builder.select(builder.fcmp_ordered("<", x, number(-87)), number(-87), x)
    shifted = _fma(builder, x, number(1 / math.log(2)), number(ROUNDER))
    n = builder.fsub(number(ROUNDER), shifted)  # negative
    rest = _fma(builder, n, number(LOG2_HIGH), x)
    rest = _fma(builder, n, number(math.log(2) - LOG2_HIGH), rest)
    result = number(1 / math.factorial(7))
    for power in range(6, -1, -1):
        result = _fma(builder, result, rest, number(1 / math.factorial(power)))
    exponent = builder.shl(builder.bitcast(shifted, ir.VectorType(I32, TILE)), _constant(I32, TILE, 23))
    scale = builder.add(exponent, _constant(I32, TILE, 127 << 23))
    return builder.fmul(result, builder.bitcast(scale, LANES))


def _fma(builder: Builder, left: Value, right: Value, addend: Value) -> Value:
    """left * right + addend, rounded once; llvmlite's own takes no vectors."""
    name, kind = f"llvm.fma.v{left.type.count}f32", ir.FunctionType(left.type, [left.type] * 3)
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [left, right, addend])


def _greater(builder: Builder, new: Value, old: Value) -> Value:
    return builder.select(builder.fcmp_ordered(">", new, old), new, old)


def _fold(builder: Builder, lanes: Value, combine: Callable[[Builder, Value, Value], Value]) -> Value:
    """One number of 16, by halves."""
    for count in (8, 4, 2, 1):
        low, high = (_pick(builder, (lanes, lanes), range(at, at + count)) for at in (0, count))
        lanes = combine(builder, low, high)
    return builder.extract_element(lanes, I32(0))


def _pointer(builder: Builder, address: Value, kind: Any, offset: int = 0) -> Value:
    return builder.inttoptr(builder.add(address, I64(offset)), kind.as_pointer())


def _read(builder: Builder, kind: Any, address: Value, offset: int = 0, align: int = FLOAT_BYTES) -> Value:
    return builder.load(_pointer(builder, address, kind, offset), align=align)


def _write(builder: Builder, value: Value, address: Value, align: int = FLOAT_BYTES) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=align)


def _constant(kind: Any, count: int, value: float) -> Value:
    return ir.Constant(ir.VectorType(kind, count), [value] * count)


def _splat(builder: Builder, number: Value, count: int) -> Value:
    empty = ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
    one = builder.insert_element(empty, number, I32(0))
    return _pick(builder, (one, one), [0] * count)


def _pick(builder: Builder, pair: tuple[Value, Value], indices: Iterable[int]) -> Value:
    """Numbers of two vectors, counted through both, as one vector."""
    chosen = list(indices)
    return builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, len(chosen)), chosen))
