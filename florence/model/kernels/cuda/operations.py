"""What all kernels have in common: how they become operations of PyTorch, and sizes of their blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from triton import knobs

Launch = TypeVar("Launch", bound=Callable[..., Any])

TILE_ROWS = 16
"""Rows of the smallest tile that tensor cores multiply: a request's beams, up to eight, and zeros."""


def operation(fake: Callable[..., Any], mutates: Iterable[str] = ()) -> Callable[[Launch], Launch]:
    """Register a launch as the operation florence::NAME; `fake` makes its results' shapes, `mutates` names
    the arguments that it writes."""

    def register(launch: Launch) -> Launch:
        name = f"florence::{launch.__name__}"
        made: Any = torch.library.custom_op(name, launch, mutates_args=tuple(mutates))
        made.register_fake(fake)
        result: Launch = made
        return result

    return register


def needs_float32(dtype: torch.dtype) -> bool:
    """Whether products have to be computed in float32: triton's interpreter has no bfloat16 in `tl.dot`."""
    return bool(knobs.runtime.interpret) and dtype is torch.bfloat16


def power_of_2(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
