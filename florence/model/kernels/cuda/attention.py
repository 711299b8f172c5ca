# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The decoder's self-attention and cross-attention in one step, for all beams of a request together.

One program computes one head of one request: its beams are the rows of a tile, so a position that several
beams share is read once. Keys are read block by block with a running softmax (FlashAttention, arXiv
2205.14135); with few requests the keys of one head are split among several programs, and their results are
combined by log-sum-exp (flash-decoding, https://pytorch.org/blog/flash-decoding/). Only positions that a
request has written are read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import TILE_ROWS, like_first, needs_float32, operation, product

BLOCK = 64
"""Keys that a program reads at once."""

PROGRAMS = 128
"""Programs that occupy a GPU; with fewer than that, keys are split."""

MAX_SPLITS = 8


def splits_for(requests: int, heads: int) -> int:
    """Among how many programs the keys of one head are split."""
    return max(1, min(MAX_SPLITS, PROGRAMS // (requests * heads)))


@triton.jit
def attend(query, keys, values, seen, highest, total, mixed, scale, FLOAT32: tl.constexpr):
    """Add a block of keys and values [block, head_dim] to a running softmax; `seen` [rows, block]."""
    scores = tl.where(seen, product(query, tl.trans(keys), FLOAT32) * scale, -float("inf"))
    new = tl.maximum(highest, tl.max(scores, 1))
    shift = tl.where(new == -float("inf"), 0.0, new)  # where a row has seen no key yet
    kept, weights = tl.exp(highest - shift), tl.exp(scores - shift[:, None])
    mixed = mixed * kept[:, None] + product(weights.to(values.dtype), values, FLOAT32)
    return new, total * kept + tl.sum(weights, 1), mixed


@triton.jit
def _write(
    highest, total, mixed, out, parts, request, head, split,
    BEAMS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Write a request's rows: the result, or, where keys are split, this part's highest score, sum and
    weighted values, float32 [rows, heads, splits, 2 + head_dim]."""
    beam, d = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    place = (request * BEAMS + beam) * HEADS + head
    is_row = beam < BEAMS
    if SPLITS == 1:
        result = mixed / tl.where(total > 0, total, 1.0)[:, None]
        where = place[:, None] * HEAD_DIM + d[None, :]
        tl.store(out + where, result.to(out.dtype.element_ty), mask=is_row[:, None])
    else:
        part = parts + (place * SPLITS + split) * (2 + HEAD_DIM)
        tl.store(part, highest, mask=is_row)
        tl.store(part + 1, total, mask=is_row)
        tl.store(part[:, None] + 2 + d[None, :], mixed, mask=is_row[:, None])


@triton.jit
def self_attention_kernel(
    queries, keys, values, key_cache, value_cache, rows, positions, beams, indirection, out, parts,
    states_stride, row_stride, head_stride, request_stride, beam_stride, scale,
    BEAMS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, FLOAT32: tl.constexpr,
):  # fmt: skip
    request, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    beam, d = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    first, count = request * BEAMS, tl.load(beams + request)
    present = beam < count
    position = tl.load(positions + first)
    place = (first + beam)[:, None] * states_stride + head * HEAD_DIM + d[None, :]
    query = tl.load(queries + place, mask=present[:, None], other=0.0)
    # This step's position comes from registers: only this program writes it to the cache, below.
    mine = present & (split == 0)
    own_key = tl.load(keys + place, mask=mine[:, None], other=0.0)
    own_value = tl.load(values + place, mask=mine[:, None], other=0.0)
    score = tl.sum(query.to(tl.float32) * own_key.to(tl.float32), 1) * scale
    highest = tl.where(mine, score, -float("inf"))
    total = tl.where(mine, 1.0, 0.0)
    mixed = own_value.to(tl.float32)
    own_row = tl.load(rows + first + beam, mask=mine, other=0).to(tl.int64)
    written = (own_row * row_stride + head * head_stride + position * HEAD_DIM)[:, None] + d[None, :]
    tl.store(key_cache + written, own_key, mask=mine[:, None])
    tl.store(value_cache + written, own_value, mask=mine[:, None])
    ancestors = indirection + request.to(tl.int64) * request_stride + beam[:, None] * beam_stride
    # For each block of positions, the request's cache rows one after another.
    for part in range(split, count * tl.cdiv(position, BLOCK), SPLITS):
        row = tl.load(rows + first + part % count).to(tl.int64)
        p = part // count * BLOCK + tl.arange(0, BLOCK)
        past = present[:, None] & (p < position)[None, :]
        owned = tl.load(ancestors + p[None, :], mask=past, other=-1) == row.to(tl.int32)
        used = tl.max(owned.to(tl.int32), 0)[:, None] > 0
        where = (row * row_stride + head * head_stride) + p[:, None] * HEAD_DIM + d[None, :]
        key = tl.load(key_cache + where, mask=used, other=0.0)
        value = tl.load(value_cache + where, mask=used, other=0.0)
        highest, total, mixed = attend(query, key, value, owned, highest, total, mixed, scale, FLOAT32)
    _write(
        highest, total, mixed, out, parts, request, head, split, BEAMS, HEADS, HEAD_DIM, ROWS, SPLITS
    )  # fmt: skip


@triton.jit
def cross_attention_kernel(
    queries, key_cache, value_cache, slots, lengths, beams, out, parts,
    slot_stride, head_stride, scale,
    BEAMS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, FLOAT32: tl.constexpr,
):  # fmt: skip
    request, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    beam, d = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    count = tl.load(beams + request)
    present = beam < count
    length = tl.where(count > 0, tl.load(lengths + request), 0)
    place = ((request * BEAMS + beam)[:, None] * HEADS + head) * HEAD_DIM + d[None, :]
    query = tl.load(queries + place, mask=present[:, None], other=0.0)
    start = tl.load(slots + request).to(tl.int64) * slot_stride + head * head_stride
    highest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    for block in range(split * BLOCK, length, SPLITS * BLOCK):
        p = block + tl.arange(0, BLOCK)
        seen = p < length
        where = start + p[:, None] * HEAD_DIM + d[None, :]
        key = tl.load(key_cache + where, mask=seen[:, None], other=0.0)
        value = tl.load(value_cache + where, mask=seen[:, None], other=0.0)
        highest, total, mixed = attend(
            query, key, value, present[:, None] & seen[None, :], highest, total, mixed, scale, FLOAT32
        )
    _write(
        highest, total, mixed, out, parts, request, head, split, BEAMS, HEADS, HEAD_DIM, ROWS, SPLITS
    )  # fmt: skip


@triton.jit
def combine_kernel(parts, out, SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Combine the parts of one head of one row by log-sum-exp."""
    place = tl.program_id(0)
    split, d = tl.arange(0, SPLITS), tl.arange(0, HEAD_DIM)
    part = parts + (place * SPLITS + split) * (2 + HEAD_DIM)
    highest = tl.load(part)
    best = tl.max(highest, 0)
    kept = tl.exp(highest - tl.where(best == -float("inf"), 0.0, best))
    total = tl.sum(tl.load(part + 1) * kept, 0)
    mixed = tl.sum(tl.load(part[:, None] + 2 + d[None, :]) * kept[:, None], 0)
    result = mixed / tl.where(total > 0, total, 1.0)
    tl.store(out + place * HEAD_DIM + d, result.to(out.dtype.element_ty))


@operation(like_first, mutates=("key_cache", "value_cache"))
def self_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    beams: Tensor,
    indirection: Tensor,
) -> Tensor:
    """Write each row's keys and values, and attend to its past; see `twins.self_attention`."""
    requests, heads, head_dim = len(beams), key_cache.shape[1], key_cache.shape[3]
    splits = splits_for(requests, heads)
    out, parts = _results(queries, heads, head_dim, splits)
    self_attention_kernel[requests, heads, splits](
        queries, keys, values, key_cache, value_cache, rows, positions, beams, indirection, out, parts,
        queries.stride(0), *key_cache.stride()[:2], *indirection.stride()[:2], head_dim**-0.5,
        BEAMS=len(rows) // requests, HEADS=heads, HEAD_DIM=head_dim, ROWS=TILE_ROWS,
        BLOCK=BLOCK, SPLITS=splits, FLOAT32=needs_float32(queries.dtype), num_warps=4, num_stages=2,
    )  # fmt: skip
    return _combined(out, parts, heads, splits)


@operation(like_first)
def cross_attention(
    queries: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, lengths: Tensor, beams: Tensor
) -> Tensor:
    """Attend to the encoder states of each row's request; see `twins.cross_attention`."""
    requests, heads, head_dim = len(beams), key_cache.shape[1], key_cache.shape[3]
    splits = splits_for(requests, heads)
    out, parts = _results(queries, heads, head_dim, splits)
    cross_attention_kernel[requests, heads, splits](
        queries, key_cache, value_cache, slots, lengths, beams, out, parts,
        *key_cache.stride()[:2], head_dim**-0.5,
        BEAMS=len(queries) // requests, HEADS=heads, HEAD_DIM=head_dim, ROWS=TILE_ROWS,
        BLOCK=BLOCK, SPLITS=splits, FLOAT32=needs_float32(queries.dtype), num_warps=4,
        num_stages=3 if queries.element_size() == 2 else 2,
    )  # fmt: skip
    return _combined(out, parts, heads, splits)


def _results(queries: Tensor, heads: int, head_dim: int, splits: int) -> tuple[Tensor, Tensor]:
    """Buffers for the result, and for the parts where keys are split."""
    out = like_first(queries)
    if splits == 1:
        return out, out
    shape = len(queries), heads, splits, 2 + head_dim
    return out, torch.empty(shape, dtype=torch.float32, device=queries.device)


def _combined(out: Tensor, parts: Tensor, heads: int, splits: int) -> Tensor:
    if splits > 1:
        combine_kernel[(len(out) * heads,)](
            parts, out, SPLITS=splits, HEAD_DIM=parts.shape[-1] - 2, num_warps=1
        )
    return out
