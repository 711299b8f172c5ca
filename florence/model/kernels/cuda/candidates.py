# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The likeliest next tokens of each row from a step's logits: two kernels in place of a dozen passes.

`scan` goes over the logits once, one program for each part of a row: it computes log-sum-exp, applies the
search's rules, and keeps the best allowed tokens. `merge` combines the parts of each row. Rows are as the
package's docstring says. `florence.engine.device.beams.search` defines the results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import operation, power_of_2

CHUNK = 4096
"""Logits that one program of `scan` processes."""

HISTORY = 64
"""Earlier tokens that it reads at a time."""


@triton.jit
def keys_of(values, indices):
    """int64 keys in the order of float32 `values`; of equal values the one with the smaller index ranks
    higher."""
    bits = values.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - indices).to(tl.int64)


@triton.jit
def index_of(key):
    """The index in a key."""
    return (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def value_of(key):
    """The value in a key."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def lowest_key():
    """Less than any key."""
    return tl.full((), -0x7FFFFFFFFFFFFFFF, tl.int64)


@triton.jit
def _highest_and_sum(values):
    """The maximum m of the values, and the sum of exp(value - m)."""
    highest = tl.max(values, 0)
    return highest, tl.sum(tl.exp(values - tl.where(highest == -float("inf"), 0.0, highest)), 0)


@triton.jit
def scan_kernel(
    logits, sums, keys, sequences, matches, generated, ngram_sizes, min_new_tokens, slots, beams,
    vocab, row_stride, slot_stride, beam_stride, eos_id,
    BEAMS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TOP: tl.constexpr, HISTORY: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0), tl.program_id(1)
    request, beam = row // BEAMS, row % BEAMS
    if beam >= tl.load(beams + request):
        return
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    of_row = logits + row.to(tl.int64) * row_stride
    plain = tl.load(of_row + token, mask=token < vocab, other=-float("inf"))
    highest, total = _highest_and_sum(plain)
    # Forbidden tokens are set to -inf in this program's part of the logits, which it then reads again.
    slot = tl.load(slots + request).to(tl.int64)
    count, size = tl.load(generated + slot), tl.load(ngram_sizes + slot)
    history = slot * slot_stride + beam * beam_stride
    for start in range(0, tl.where(size > 0, count + 1, 0), HISTORY):
        e = start + tl.arange(0, HISTORY)
        known = e <= count
        earlier = tl.load(sequences + history + e, mask=known, other=-1)
        match = tl.load(matches + history + e, mask=known, other=-1)
        banned = known & (match >= size - 1) & (earlier // CHUNK == chunk)
        tl.store(of_row + earlier, -float("inf"), mask=banned)
    early = (count < tl.load(min_new_tokens + slot)) & (eos_id // CHUNK == chunk)
    tl.store(of_row + eos_id, -float("inf"), mask=early)
    tl.debug_barrier()
    allowed = tl.load(of_row + token, mask=token < vocab, other=-float("inf"))
    highest_allowed, total_allowed = _highest_and_sum(allowed)
    part = row * CHUNKS + chunk
    tl.store(sums + part * 4, highest)
    tl.store(sums + part * 4 + 1, total)
    tl.store(sums + part * 4 + 2, highest_allowed)
    tl.store(sums + part * 4 + 3, total_allowed)
    left = tl.where(token < vocab, keys_of(allowed, token), lowest_key())
    for rank in range(TOP):
        best = tl.max(left, 0)
        tl.store(keys + part * TOP + rank, best)
        left = tl.where(left == best, lowest_key(), left)


@triton.jit
def _log_sum_exp(sums, part, inside):
    """Log-sum-exp of each row from its parts' maxima and sums, [rows, parts]."""
    highest = tl.load(sums + part, mask=inside, other=-float("inf"))
    total = tl.load(sums + part + 1, mask=inside, other=0.0)
    best = tl.max(highest, 1)
    shift = tl.where(best == -float("inf"), 0.0, best)
    return shift + tl.log(tl.sum(total * tl.exp(highest - shift[:, None]), 1))


@triton.jit
def merge_kernel(
    sums, keys, tokens, logprobs, normalizers, faulty, slots, beams, generated, max_new_tokens,
    forced_first, forced_last,
    BEAMS: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    TOP: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    request, beam = tl.program_id(0), tl.arange(0, ROWS)
    own = tl.load(beams + request)
    row, present = request * BEAMS + beam, beam < own
    chunk = tl.arange(0, PARTS)
    part = (row[:, None] * CHUNKS + chunk[None, :]) * 4
    inside = present[:, None] & (chunk < CHUNKS)[None, :]
    plain = _log_sum_exp(sums, part, inside)
    allowed = _log_sum_exp(sums, part + 2, inside)
    # Not finite: NaN, or above the largest float32.
    wrong = present & ~(tl.abs(plain) <= 3.4028234663852886e38)
    tl.store(faulty + request, tl.max(wrong.to(tl.int32), 0) > 0)
    normalizer = tl.where(own == 1, allowed, plain)  # greedy search normalises after the rules
    tl.store(normalizers + row, normalizer, mask=present)
    slot = tl.load(slots + request)
    count = tl.load(generated + slot)
    first = (forced_first >= 0) & (count == 0)
    last = (forced_last >= 0) & (count + 1 == tl.load(max_new_tokens + slot))
    forced = tl.where(last, forced_last, forced_first)
    place = tl.arange(0, KEYS)
    inside = present[:, None] & (place < CHUNKS * TOP)[None, :]
    left = tl.load(keys + row[:, None] * (CHUNKS * TOP) + place[None, :], mask=inside, other=lowest_key())
    for rank in range(TOP):
        best = tl.max(left, 1)
        token, logprob = index_of(best).to(tl.int64), value_of(best) - normalizer
        if first | last:
            token = tl.where(rank == 0, forced, token)
            logprob = tl.where(present & (rank == 0), 0.0, -float("inf"))
        tl.store(tokens + row * TOP + rank, token, mask=present)
        tl.store(logprobs + row * TOP + rank, logprob, mask=present)
        left = tl.where(left == best[:, None], lowest_key(), left)


def _fake_scan(logits: Tensor, slots: Tensor, beams: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows, chunks = len(logits), triton.cdiv(logits.shape[1], CHUNK)
    top = 2 * (rows // len(beams))
    return logits.new_empty(rows, chunks, 4), logits.new_empty(rows, chunks, top, dtype=torch.int64)


@operation(_fake_scan, mutates=("logits",))
def scan(
    logits: Tensor,
    slots: Tensor,
    beams: Tensor,
    sequences: Tensor,
    matches: Tensor,
    generated: Tensor,
    ngram_sizes: Tensor,
    min_new_tokens: Tensor,
    eos_id: int,
) -> tuple[Tensor, Tensor]:
    """Sums and best keys of each row's parts, for `merge`, from float32 `logits` [rows, vocab], where
    forbidden tokens are set to -inf.

    `slots` int64 and `beams` int32 [requests]. The others are the fields of `SearchState`, `matches` its
    `suffix_matches`.
    """
    sums, keys = _fake_scan(logits, slots, beams)
    (rows, chunks, top), width = keys.shape, len(logits) // len(beams)
    scan_kernel[rows, chunks](
        logits, sums, keys, sequences, matches, generated, ngram_sizes, min_new_tokens, slots, beams,
        logits.shape[1], logits.stride(0), *sequences.stride()[:2], eos_id,
        BEAMS=width, CHUNK=CHUNK, CHUNKS=chunks, TOP=top, HISTORY=HISTORY, num_warps=8,
    )  # fmt: skip
    return sums, keys


def _fake_merge(sums: Tensor, keys: Tensor, slots: Tensor, *_: object) -> tuple[Tensor, ...]:
    rows, _chunks, top = keys.shape
    return (
        keys.new_empty(rows, top),
        sums.new_empty(rows, top),
        sums.new_empty(rows),
        keys.new_empty(len(slots), dtype=torch.bool),
    )


@operation(_fake_merge)
def merge(
    sums: Tensor,
    keys: Tensor,
    slots: Tensor,
    beams: Tensor,
    generated: Tensor,
    max_new_tokens: Tensor,
    forced_first: int,
    forced_last: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The candidates of each row from the parts of `scan`. A forced token of -1 forces nothing.

    Returns tokens int64 and their log-probabilities float32, both [rows, 2 * beams], the best first; the
    normalizers, which were subtracted from the logits, float32 [rows]; and whether a request's logits are NaN
    or infinite, bool [requests].
    """
    (_, chunks, top), width = keys.shape, len(keys) // len(beams)
    tokens, logprobs, normalizers, faulty = _fake_merge(sums, keys, slots)
    merge_kernel[(len(beams),)](
        sums, keys, tokens, logprobs, normalizers, faulty, slots, beams, generated, max_new_tokens,
        forced_first, forced_last,
        BEAMS=width, ROWS=power_of_2(width), CHUNKS=chunks, PARTS=power_of_2(chunks),
        TOP=top, KEYS=power_of_2(chunks * top),
    )  # fmt: skip
    return tokens, logprobs, normalizers, faulty
