# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""A step of all searches in one kernel: makes the next beams, hypotheses and histories from candidates.

One program extends one request's search, as `florence.engine.device.beams.search` defines it: first the
candidates one after another, in order of their totals, with the finished hypotheses in registers; then the
histories of the beams that continue, from the end to the start, since each entry of the suffix matches needs
the one before it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.candidates import index_of, keys_of, lowest_key, value_of
from florence.model.kernels.cuda.operations import operation, power_of_2

HISTORY = 32
"""Positions that are moved at a time, for all beams."""

RUNNING, DONE, FAULTY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""The statuses of a search, as in `search_state`."""


@triton.jit
def _power(base, exponent):
    """`base ** exponent` in float64, for a base above 0; exact for the exponents 0 and 1."""
    general = tl.exp(exponent * tl.log(base))
    return tl.where(exponent == 1.0, base, tl.where(exponent == 0.0, 1.0, general))


@triton.jit
def _worst(scores, kept):
    return tl.min(tl.where(kept, scores, float("inf")), 0)


@triton.jit
def _add(scores, order, lengths, count, index, own, score, length):
    """Add a hypothesis if it is among the best. Returns the new tables, their count, and its index or -1."""
    kept, full = index < count, count == own
    worst = _worst(scores, kept)
    # It replaces the worst hypothesis; of equally bad ones, the oldest.
    age = tl.where(kept & (scores == worst), order, 0x7FFFFFFFFFFFFFFF)
    oldest = tl.argmin(age, 0)
    is_added = (count < own) | (score > worst)
    place = tl.where(is_added, tl.where(full, oldest, count), -1)
    newest = tl.max(tl.where(kept, order, -1), 0) + 1
    here = index == place
    scores = tl.where(here, score, scores)
    order = tl.where(here, newest, order)
    lengths = tl.where(here, length, lengths)
    return scores, order, lengths, count + (is_added & (count < own)).to(tl.int64), place


@triton.jit
def _keep(
    sequences, logprobs, indirection, kept_sequences, kept_logprobs, kept_indirection,
    source, target, token, logprob, row, end, HISTORY: tl.constexpr,
):  # fmt: skip
    """Copy a beam's history up to position `end`, where the new token goes, into a hypothesis."""
    for start in range(0, end + 1, HISTORY):
        e = start + tl.arange(0, HISTORY)
        old, is_end = e < end, e == end
        moved = tl.where(is_end, token, tl.load(sequences + source + e, mask=old, other=0))
        tl.store(kept_sequences + target + e, moved, mask=old | is_end)
        likely = tl.where(is_end, logprob, tl.load(logprobs + source + e, mask=old, other=0.0))
        tl.store(kept_logprobs + target + e, likely, mask=old | is_end)
        place = tl.where(is_end, row, tl.load(indirection + source + e, mask=old, other=0))
        tl.store(kept_indirection + target + e, place, mask=old | is_end)
    tl.debug_barrier()  # another hypothesis may replace it in this step


@triton.jit
def _finish(
    scores, order, lengths, count, index, own, total, divisor,
    sequences, logprobs, indirection, kept_sequences, kept_logprobs, kept_indirection,
    of_slot, beam_stride, parent, token, logprob, row, end, HISTORY: tl.constexpr,
):  # fmt: skip
    """Make a hypothesis of a candidate if it is among the best. Returns the new tables and their count."""
    score = total.to(tl.float64) / divisor
    scores, order, lengths, count, place = _add(scores, order, lengths, count, index, own, score, end)
    if place >= 0:
        _keep(
            sequences, logprobs, indirection, kept_sequences, kept_logprobs, kept_indirection,
            of_slot + parent * beam_stride, of_slot + place * beam_stride, token, logprob, row, end, HISTORY,
        )  # fmt: skip
    return scores, order, lengths, count


@triton.jit
def _move(
    sequences, matches, logprobs, indirection, of_slot, beam_stride, beam, is_own,
    parent, token, logprob, row, end, HISTORY: tl.constexpr,
):  # fmt: skip
    """Give each beam its parent's history, and its token at position `end`."""
    blocks = tl.cdiv(end + 1, HISTORY)
    source = of_slot + parent[:, None] * beam_stride
    for block in range(blocks):
        e = ((blocks - 1 - block) * HISTORY + tl.arange(0, HISTORY))[None, :]
        old, is_end = is_own[:, None] & (e < end), e == end
        earlier = is_own[:, None] & (e > 0) & (e <= end)
        sequence = tl.load(sequences + source + e, mask=old, other=0)
        before = tl.load(sequences + source + e - 1, mask=earlier, other=-1)
        match = tl.load(matches + source + e - 1, mask=earlier, other=0)
        likely = tl.load(logprobs + source + e, mask=old, other=0.0)
        place = tl.load(indirection + source + e, mask=old, other=0)
        tl.debug_barrier()  # wait until all beams have been read
        target, written = of_slot + beam[:, None] * beam_stride + e, is_own[:, None] & (e <= end)
        tl.store(sequences + target, tl.where(is_end, token[:, None], sequence), mask=written)
        tl.store(matches + target, tl.where(before == token[:, None], match + 1, 0), mask=written)
        tl.store(logprobs + target, tl.where(is_end, logprob[:, None], likely), mask=written)
        tl.store(indirection + target, tl.where(is_end, row[:, None], place), mask=written)
        tl.debug_barrier()


@triton.jit
def choose_kernel(
    tokens, logprobs, faulty, slots, beams, rows, chosen_tokens, parent_rows,
    status, last_token, generated, totals, sequences, matches, histories, indirection,
    finished_count, finished_scores, finished_order, finished_lengths,
    finished_sequences, finished_logprobs, finished_indirection,
    max_new_tokens, early_stopping, length_penalty, eos_id, slot_stride, beam_stride,
    BEAMS: tl.constexpr, WIDTH: tl.constexpr, MAX_BEAMS: tl.constexpr, TOP: tl.constexpr,
    OFFERED: tl.constexpr, HISTORY: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    own = tl.load(beams + request)
    slot = tl.load(slots + request).to(tl.int64)
    beam = tl.arange(0, WIDTH)
    chosen = request * BEAMS + beam
    tl.store(chosen_tokens + chosen, beam.to(tl.int64) * 0 - 1, mask=beam < BEAMS)  # if it doesn't continue
    tl.store(parent_rows + chosen, chosen.to(tl.int64), mask=beam < BEAMS)
    if own == 0:
        return
    if tl.load(status + slot) != RUNNING:
        return
    if tl.load(faulty + request):
        tl.store(status + slot, FAULTY)
        return
    # The candidates, by total.
    offer = tl.arange(0, OFFERED)
    of_beam = offer // TOP
    is_offered = (offer < BEAMS * TOP) & (of_beam < own)
    offered = request * BEAMS * TOP + offer
    token = tl.load(tokens + offered, mask=is_offered, other=0)
    logprob = tl.load(logprobs + offered, mask=is_offered, other=-float("inf"))
    total = logprob + tl.load(totals + slot * MAX_BEAMS + of_beam, mask=is_offered, other=-float("inf"))
    left = tl.where(is_offered, keys_of(total, offer), lowest_key())
    # The finished hypotheses.
    kept = slot * MAX_BEAMS + beam
    is_own = beam < own
    count = tl.load(finished_count + slot)
    scores = tl.load(finished_scores + kept, mask=is_own, other=0.0)
    order = tl.load(finished_order + kept, mask=is_own, other=0)
    lengths = tl.load(finished_lengths + kept, mask=is_own, other=0)
    penalty, end = tl.load(length_penalty + slot), tl.load(generated + slot) + 1
    divisor = _power(end.to(tl.float64), penalty)
    of_slot = slot * slot_stride
    # The first candidates that continue, by rank.
    next_parent = tl.zeros((WIDTH,), tl.int32)
    next_token = tl.zeros((WIDTH,), tl.int64)
    next_logprob = tl.zeros((WIDTH,), tl.float32)
    next_total = tl.full((WIDTH,), -float("inf"), tl.float32)
    going = tl.zeros((), tl.int32)
    best_total = tl.max(total, 0)
    own_row = tl.load(rows + request * BEAMS + beam, mask=is_own, other=0).to(tl.int32)
    first_row = tl.load(rows + request * BEAMS).to(tl.int32)  # for EOS; never read
    for rank in range(2 * own):
        key = tl.max(left, 0)
        left = tl.where(left == key, lowest_key(), left)
        place, its_total = index_of(key), value_of(key)
        is_it = offer == place
        its_token = tl.sum(tl.where(is_it, token, 0), 0)
        its_logprob = tl.sum(tl.where(is_it, logprob, 0.0), 0)
        parent = place // TOP
        if rank == 0:
            tl.store(last_token + slot, its_token)
        if its_token == eos_id:
            if rank < own:  # candidates that rank after the open beams are dropped
                scores, order, lengths, count = _finish(
                    scores, order, lengths, count, beam, own, its_total, divisor,
                    sequences, histories, indirection,
                    finished_sequences, finished_logprobs, finished_indirection,
                    of_slot, beam_stride, parent, its_token, its_logprob, first_row, end, HISTORY,
                )  # fmt: skip
        else:
            here = (beam == going) & is_own
            next_parent = tl.where(here, parent, next_parent)
            next_token = tl.where(here, its_token, next_token)
            next_logprob = tl.where(here, its_logprob, next_logprob)
            next_total = tl.where(here, its_total, next_total)
            going += 1
    limit = tl.load(max_new_tokens + slot)
    early = tl.load(early_stopping + slot)
    at_full_length = (early == 2) & (penalty > 0)
    reached = _power(tl.where(at_full_length, limit, end).to(tl.float64), penalty)
    beaten = _worst(scores, beam < count) >= best_total.to(tl.float64) / reached
    done = (count == own) & ((early == 0) | beaten | (own == 1))
    if (end == limit) & (done == 0):
        for rank in range(tl.minimum(going, own)):
            here = beam == rank
            its_total = tl.max(tl.where(here, next_total, -float("inf")), 0)
            scores, order, lengths, count = _finish(
                scores, order, lengths, count, beam, own, its_total, divisor,
                sequences, histories, indirection,
                finished_sequences, finished_logprobs, finished_indirection, of_slot, beam_stride,
                tl.sum(tl.where(here, next_parent, 0), 0), tl.sum(tl.where(here, next_token, 0), 0),
                tl.sum(tl.where(here, next_logprob, 0.0), 0), tl.sum(tl.where(here, own_row, 0), 0),
                end, HISTORY,
            )  # fmt: skip
    tl.store(finished_count + slot, count)
    tl.store(finished_scores + kept, scores, mask=is_own)
    tl.store(finished_order + kept, order, mask=is_own)
    tl.store(finished_lengths + kept, lengths, mask=is_own)
    _move(
        sequences, matches, histories, indirection, of_slot, beam_stride, beam, is_own,
        next_parent, next_token, next_logprob, own_row, end, HISTORY,
    )  # fmt: skip
    goes_on = is_own & (beam < going)
    tl.store(chosen_tokens + chosen, next_token, mask=goes_on)
    tl.store(parent_rows + chosen, (request * BEAMS + next_parent).to(tl.int64), mask=goes_on)
    tl.store(totals + kept, next_total, mask=is_own)
    tl.store(generated + slot, end)
    if done | (end == limit):
        tl.store(status + slot, DONE)


def _fake(
    tokens: Tensor, logprobs: Tensor, faulty: Tensor, slots: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    shape = len(slots), len(tokens) // len(slots)
    return tokens.new_empty(shape), tokens.new_empty(shape)


@operation(
    _fake,
    mutates=(
        "status",
        "last_token",
        "generated",
        "totals",
        "sequences",
        "matches",
        "histories",
        "indirection",
        "finished_count",
        "finished_scores",
        "finished_order",
        "finished_lengths",
        "finished_sequences",
        "finished_logprobs",
        "finished_indirection",
    ),
)
def choose(
    tokens: Tensor,
    logprobs: Tensor,
    faulty: Tensor,
    slots: Tensor,
    beams: Tensor,
    rows: Tensor,
    status: Tensor,
    last_token: Tensor,
    generated: Tensor,
    totals: Tensor,
    sequences: Tensor,
    matches: Tensor,
    histories: Tensor,
    indirection: Tensor,
    finished_count: Tensor,
    finished_scores: Tensor,
    finished_order: Tensor,
    finished_lengths: Tensor,
    finished_sequences: Tensor,
    finished_logprobs: Tensor,
    finished_indirection: Tensor,
    max_new_tokens: Tensor,
    early_stopping: Tensor,
    length_penalty: Tensor,
    eos_id: int,
) -> tuple[Tensor, Tensor]:
    """Extend each running search by one token.

    `tokens` int64 and `logprobs` float32 [rows, 2 * beams]: candidates of each row, best first. `faulty`
    bool, `slots` int64 and `beams` int32 [requests]. `rows` int64 [rows]: cache rows. The others are the
    fields of `SearchState`, `histories` its `logprobs`.

    Returns each beam's new token and the row of the parent that it continues, both int64 [requests, beams];
    -1 and its own row where the beam does not continue.
    """
    chosen_tokens, parent_rows = _fake(tokens, logprobs, faulty, slots)
    width, max_beams = chosen_tokens.shape[1], totals.shape[1]
    top = tokens.shape[1]
    choose_kernel[(len(slots),)](
        tokens, logprobs, faulty, slots, beams, rows, chosen_tokens, parent_rows,
        status, last_token, generated, totals, sequences, matches, histories, indirection,
        finished_count, finished_scores, finished_order, finished_lengths,
        finished_sequences, finished_logprobs, finished_indirection,
        max_new_tokens, early_stopping, length_penalty, eos_id, *sequences.stride()[:2],
        BEAMS=width, WIDTH=power_of_2(width), MAX_BEAMS=max_beams, TOP=top, OFFERED=power_of_2(width * top),
        HISTORY=HISTORY, num_warps=4, maxnreg=128,  # else the compiler spills a register for occupancy
    )  # fmt: skip
    return chosen_tokens, parent_rows
