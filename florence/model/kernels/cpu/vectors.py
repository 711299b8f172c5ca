"""Vector operations as LLVM IR, in functions that a numba kernel can call.

LLVM splits a vector of any length into the machine's registers, so this code is independent of the
instruction set. Addresses are int64, in bytes. Imports numba, so only modules that compile kernels import
this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

FLOAT_BYTES = 4

AHEAD_BYTES = 4096
"""Prefetch distance: one page, since hardware prefetching stops at the end of a page."""

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
HIGH_HALF = 0xFFFF0000
ROUNDER = 1.5 * 2**23
LOG2_HIGH = 0.693359375  # log(2) in few bits, so that products with integers are exact

Value = Any  # llvmlite has no type information
Operation = Any  # a function that numba can inline into a kernel


def floats(count: int) -> Any:
    """The LLVM type of a vector of `count` float32."""
    return ir.VectorType(F32, count)


def constant(kind: Any, count: int, value: float) -> Value:
    """A vector that repeats `value`; a float32 is rounded to nearest."""
    value = float(np.float32(value)) if kind is F32 else value
    return ir.Constant(ir.VectorType(kind, count), [value] * count)


class Builder(ir.IRBuilder):  # type: ignore[misc]  # llvmlite has no type information
    """Appends instructions to a block: LLVM's own, and the methods here on whole vectors."""

    def exponential(self, x: Value) -> Value:
        """exp of non-positive float32: 2 ** n * exp(rest) with |rest| <= log(2) / 2.

        Adding 1.5 * 2 ** 23 rounds to an integer n and leaves it in the last bits. Inputs below -87, for
        which n would be out of float32's range, give exp(-87); NaN stays NaN.
        """
        count = x.type.count
        number = partial(constant, F32, count)
        x = self.select(self.fcmp_ordered("<", x, number(-87)), number(-87), x)
        shifted = self.fma(x, number(1 / math.log(2)), number(ROUNDER))
        n = self.fsub(number(ROUNDER), shifted)  # negative
        rest = self.fma(n, number(LOG2_HIGH), x)
        rest = self.fma(n, number(math.log(2) - LOG2_HIGH), rest)
        result = number(1 / math.factorial(7))
        for power in range(6, -1, -1):
            result = self.fma(result, rest, number(1 / math.factorial(power)))
        exponent = self.shl(self.bitcast(shifted, ir.VectorType(I32, count)), constant(I32, count, 23))
        scale = self.add(exponent, constant(I32, count, 127 << 23))
        return self.fmul(result, self.bitcast(scale, floats(count)))

    def bfloat16_bits(self, row: Value) -> Value:
        """float32 rounded to the nearest bfloat16, ties to even, in the upper half of int32."""
        width = row.type.count
        bits = self.bitcast(row, ir.VectorType(I32, width))
        last = self.and_(self.lshr(bits, constant(I32, width, 16)), constant(I32, width, 1))
        rounded = self.add(bits, self.add(last, constant(I32, width, 0x7FFF)))
        not_a_number = self.fcmp_unordered("uno", row, row)
        return self.select(not_a_number, constant(I32, width, 0x7FC00000), rounded)

    def prefetch(self, address: Value, size: int) -> None:
        """Prefetch the `size` bytes that begin AHEAD_BYTES after `address`, which may be invalid."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        call = self.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        for offset in range(AHEAD_BYTES, AHEAD_BYTES + size, 64):
            line = self.pointer(address, ir.IntType(8), offset)
            self.call(call, [line, I32(0), I32(2), I32(1)])  # a read, second-level cache, data

    def split_pairs(self, pairs: Value) -> list[Value]:
        """Pairs of bfloat16, each in an int32, as two vectors of float32: the low ones and the high ones."""
        count = pairs.type.count
        low = self.shl(pairs, constant(I32, count, 16))
        high = self.and_(pairs, constant(I32, count, HIGH_HALF))
        return [self.bitcast(half, floats(count)) for half in (low, high)]

    def widened(self, dtype: torch.dtype, source: Value, count: int, offset: int = 0) -> Value:
        """`count` elements of the dtype as float32."""
        if dtype == torch.bfloat16:
            halves = self.read(ir.VectorType(I16, count), source, offset, align=2)
            bits = self.zext(halves, ir.VectorType(I32, count))
            return self.bitcast(self.shl(bits, constant(I32, count, 16)), floats(count))
        if dtype == torch.float16:
            halves = self.read(ir.VectorType(F16, count), source, offset, align=2)
            return self.fpext(halves, floats(count))
        return self.read(floats(count), source, offset)

    def fma(self, left: Value, right: Value, addend: Value) -> Value:
        """left * right + addend, rounded once; llvmlite's own `fma` takes no vectors."""
        name, kind = f"llvm.fma.v{left.type.count}f32", ir.FunctionType(left.type, [left.type] * 3)
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.call(function, [left, right, addend])

    def repeat(
        self, end: Value, step: int, first: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]
    ) -> list[Value]:
        """A loop in one block, whose values stay in registers: replaces the values (at first `first`) by
        `body(index, values)` for index 0, `step`, ... below `end`, at least once, and returns the last
        ones."""
        before, loop, done = self.block, *map(self.append_basic_block, ("loop", "done"))
        self.branch(loop)
        self.position_at_end(loop)
        index, values = self.phi(I64), [self.phi(value.type) for value in first]
        new = body(index, values)
        following = self.add(index, I64(step))
        for phi, start, later in zip((index, *values), (I64(0), *first), (following, *new), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(later, loop)
        self.cbranch(self.icmp_signed("<", following, end), loop, done)
        self.position_at_end(done)
        return new

    def greater(self, new: Value, old: Value) -> Value:
        return self.select(self.fcmp_ordered(">", new, old), new, old)

    def fold(self, lanes: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Reduce the lanes (a power of two of them) to one number, halving the vector in each step."""
        while count := lanes.type.count // 2:
            low, high = (self.pick((lanes, lanes), range(at, at + count)) for at in (0, count))
            lanes = combine(low, high)
        return self.extract_element(lanes, I32(0))

    def pointer(self, address: Value, kind: Any, offset: int = 0) -> Value:
        return self.inttoptr(self.add(address, I64(offset)), kind.as_pointer())

    def read(self, kind: Any, address: Value, offset: int = 0, align: int = FLOAT_BYTES) -> Value:
        return self.load(self.pointer(address, kind, offset), align=align)

    def write(self, value: Value, address: Value, offset: int = 0, align: int = FLOAT_BYTES) -> None:
        self.store(value, self.pointer(address, value.type, offset), align=align)

    def splat(self, number: Value, count: int) -> Value:
        empty = ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
        one = self.insert_element(empty, number, I32(0))
        return self.pick((one, one), [0] * count)

    def pick(self, pair: Sequence[Value], indices: Iterable[int]) -> Value:
        """The elements of two vectors at these indices, counted through both, as one vector."""
        chosen = list(indices)
        return self.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, len(chosen)), chosen))


def compiled(function: Any) -> Operation:
    """A function that a kernel can call; it becomes part of the kernel's own code."""
    return njit(function, inline="always")


def take_next() -> Operation:
    """An operation: returns the int64 at an address and increments it atomically."""
    return operation(
        lambda builder, at: builder.atomic_rmw("add", builder.pointer(at, I64), I64(1), "monotonic"),
        types.int64,
        (types.int64,),
    )


def as_pointer() -> Operation:
    """An operation: converts an address to a pointer for `numba.carray`."""
    byte = ir.IntType(8).as_pointer()
    return operation(lambda builder, at: builder.inttoptr(at, byte), types.voidptr, (types.int64,))


def move_bytes() -> Operation:
    """A function (source, target, count): copies `count` bytes from one address to another."""
    pointer = as_pointer()

    def move(source: int, target: int, count: int) -> None:
        there, here = carray(pointer(target), count, np.uint8), carray(pointer(source), count, np.uint8)
        for index in range(count):
            there[index] = here[index]

    return compiled(move)


def operation(emit: Callable[..., Value], result: Any, arguments: tuple[Any, ...]) -> Operation:
    """A function for numba whose code is what `emit(builder, *values)` builds."""

    def generate(context: Any, numbas: ir.IRBuilder, _signature: Any, values: Any) -> Value:
        builder = Builder(numbas.block)
        value = emit(builder, *values)
        numbas.position_at_end(builder.block)
        return context.get_dummy_value() if value is None else value

    made = result(*arguments), generate
    takers: list[Callable[..., Any]] = [  # numba reads the names of a function's arguments
        lambda typing_context, a: made,
        lambda typing_context, a, b: made,
        lambda typing_context, a, b, c: made,
        lambda typing_context, a, b, c, d: made,
        lambda typing_context, a, b, c, d, e: made,
    ]
    return intrinsic(takers[len(arguments) - 1])
