# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""What all kernels have in common: their registration as PyTorch operators, block sizes, and matrix
products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

Launch = TypeVar("Launch", bound=Callable[..., Any])

TILE_ROWS = 16
"""Rows of the smallest tile that tensor cores multiply: up to eight beams of a request, padded with zeros."""


def nothing(*_: object) -> None:
    """The results of a launch that only writes to its arguments."""


def like_first(first: Tensor, *_: object) -> Tensor:
    """An empty tensor like the first argument, contiguous."""
    return first.new_empty(first.shape)


def operation(fake: Callable[..., Any] = nothing, mutates: Iterable[str] = ()) -> Callable[[Launch], Launch]:
    """Register a launch as the operator florence::NAME. `fake`: returns empty results of the right shapes;
    `mutates`: names of the arguments that it writes."""

    def register(launch: Launch) -> Launch:
        name = f"florence::{launch.__name__}"
        made: Any = torch.library.custom_op(name, launch, mutates_args=tuple(mutates))
        made.register_fake(fake)
        result: Launch = made
        return result

    return register


def needs_float32(dtype: torch.dtype) -> bool:
    """Whether operands must be converted to float32 for products: triton's interpreter has no bfloat16 in
    `tl.dot`."""
    return bool(knobs.runtime.interpret) and dtype is torch.bfloat16


def capability() -> int:
    """The current card's compute capability, 90 for sm_90; 0 in triton's interpreter."""
    if knobs.runtime.interpret:
        return 0
    return int(triton.runtime.driver.active.get_current_target().arch)


def power_of_2(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


@triton.jit
def product(left, right, FLOAT32: tl.constexpr):
    """The matrix product with float32 sums; float32 operands without TF32."""
    if FLOAT32:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")
