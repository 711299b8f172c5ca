# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Bias, residual and layer norm after a product in one pass, and the embedding of a step's tokens."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import like_first, operation, power_of_2


@triton.jit
def _normed(states, weight, bias, out, row, d, inside, eps, WIDTH: tl.constexpr):
    """Write the layer norm of `states`, a row in float32."""
    mean = tl.sum(states, 0) / WIDTH
    centred = tl.where(inside, states - mean, 0.0)
    scale = tl.math.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    gain = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    result = centred * scale * gain + shift
    tl.store(out + row * WIDTH + d, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_kernel(
    product, product_bias, residual, weight, bias, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = d < WIDTH
    states = tl.load(product + row * WIDTH + d, mask=inside, other=0.0).to(tl.float32)
    states += tl.load(product_bias + d, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        states += tl.load(residual + row * WIDTH + d, mask=inside, other=0.0).to(tl.float32)
    _normed(states, weight, bias, out, row, d, inside, eps, WIDTH)


@triton.jit
def embed_kernel(
    tokens, positions, table, places, weight, bias, out, scale, eps,
    WIDTH: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = d < WIDTH
    token, position = tl.load(tokens + row), tl.load(positions + row) + OFFSET
    states = tl.load(table + token * WIDTH + d, mask=inside, other=0.0).to(tl.float32) * scale
    states += tl.load(places + position * WIDTH + d, mask=inside, other=0.0).to(tl.float32)
    _normed(states, weight, bias, out, row, d, inside, eps, WIDTH)


@operation(like_first)
def add_norm(
    product: Tensor, product_bias: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """The layer norm of the sum of product, bias and residual; see `twins.add_norm`. All tensors are
    contiguous."""
    width, out = product.shape[1], like_first(product)
    add_norm_kernel[(len(product),)](
        product, product_bias, residual, weight, bias, out, eps,
        WIDTH=width, BLOCK=power_of_2(width), HAS_RESIDUAL=residual is not None,
    )  # fmt: skip
    return out


def _rows_of_table(tokens: Tensor, positions: Tensor, table: Tensor, *_: object) -> Tensor:
    return table.new_empty(len(tokens), table.shape[1])


@operation(_rows_of_table)
def embed(
    tokens: Tensor,
    positions: Tensor,
    table: Tensor,
    places: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: float,
    eps: float,
    offset: int,
) -> Tensor:
    """Embed tokens at their positions, and normalise; see `twins.embed`. All tensors are contiguous."""
    width, out = table.shape[1], _rows_of_table(tokens, positions, table)
    embed_kernel[(len(tokens),)](
        tokens, positions, table, places, weight, bias, out, scale, eps,
        WIDTH=width, OFFSET=offset, BLOCK=power_of_2(width),
    )  # fmt: skip
    return out
