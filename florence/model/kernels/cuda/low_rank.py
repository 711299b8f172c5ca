# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The low-rank sums of a decode step, where each row has its own adapter or none: `shrink` multiplies by
`down`, to the rank, and `expand` multiplies that by `up`.

The idea is that of Punica's kernels (arXiv 2310.18547): a program finds its row's adapter by an index in
device memory, so that launches do not depend on the adapters in use. Layers with the same input whose
matrices and outputs are adjacent are the `parts` of one launch. Adapters have slots from 1 on; the programs
of a row with slot 0 end at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import operation, power_of_2

INPUTS, TILE = 512, 2048
"""Elements of a row that a program of `shrink` reads at a time, and elements of `up` that a program of
`expand` multiplies."""

RANKS = 16
"""Ranks that a program of `shrink` computes; the rank is a multiple of it."""


@triton.jit
def shrink_kernel(
    states, index, down, thin, stride, slots, WIDTH: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    INPUTS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    slot = tl.load(index + row)
    if slot == 0:
        return
    part, i = tl.program_id(1) * RANKS // RANK, tl.arange(0, INPUTS)
    weights = down + ((part * slots + slot - 1) * RANK + column % RANK)[:, None] * WIDTH + i[None, :]
    total = tl.zeros((RANKS, INPUTS), tl.float32)
    for start in range(0, WIDTH, INPUTS):
        inside = i < WIDTH - start
        values = tl.load(states + row * stride + start + i, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weights + start, mask=inside[None, :], other=0.0).to(tl.float32) * values[None, :]
    tl.store(thin + row * tl.num_programs(1) * RANKS + column, tl.sum(total, 1))


@triton.jit
def expand_kernel(
    thin, index, up, total, stride, outputs, columns,
    RANK: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    slot = tl.load(index + row)
    if slot == 0:
        return
    o, r = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, BLOCK)
    inside, ranks = o < outputs, r < RANK
    out = part * outputs + o
    weights = up + out.to(tl.int64)[:, None] * columns + ((slot - 1) * RANK + r)[None, :]
    factors = tl.load(weights, mask=inside[:, None] & ranks[None, :], other=0.0).to(tl.float32)
    values = tl.load(thin + (row * tl.num_programs(2) + part) * RANK + r, mask=ranks, other=0.0)
    added = tl.sum(factors * values[None, :], 1)
    place = total + row * stride + out
    result = tl.load(place, mask=inside, other=0.0).to(tl.float32) + added
    tl.store(place, result.to(total.dtype.element_ty), mask=inside)


def _thin(states: Tensor, index: Tensor, down: Tensor, rank: int, parts: int) -> Tensor:
    return states.new_empty(len(states), parts * rank, dtype=torch.float32)


@operation(_thin)
def shrink(states: Tensor, index: Tensor, down: Tensor, rank: int, parts: int) -> Tensor:
    """See `twins.shrink`. `rank` is a multiple of 16; `down` is contiguous, `states` is contiguous within a
    row."""
    thin = _thin(states, index, down, rank, parts)
    shrink_kernel[(len(states), parts * rank // RANKS)](
        states, index, down, thin, states.stride(0), len(down) // (parts * rank),
        WIDTH=states.shape[1], RANK=rank, RANKS=RANKS, INPUTS=INPUTS, num_warps=8,
    )  # fmt: skip
    return thin


@operation(mutates=["total"])
def expand(thin: Tensor, index: Tensor, up: Tensor, total: Tensor, parts: int) -> None:
    """See `twins.expand`. `thin` and `up` are contiguous, `total` is contiguous within a row."""
    rank, outputs = thin.shape[1] // parts, len(up) // parts
    tile = max(1, TILE // power_of_2(rank))
    expand_kernel[len(thin), triton.cdiv(outputs, tile), parts](
        thin, index, up, total, total.stride(0), outputs, up.shape[1],
        RANK=rank, BLOCK=power_of_2(rank), OUTPUTS=tile,
    )  # fmt: skip
