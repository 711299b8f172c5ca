"""`search.advance` by the Triton kernels: four launches for all searches. Imports triton.

Where a request samples or has a repetition penalty, PyTorch's operations compute the candidates.
"""

from __future__ import annotations

from torch import Tensor

from florence.engine.device.beams import search
from florence.engine.device.beams.search_state import SearchState, StepShape
from florence.model.attention import DecodeBatch
from florence.model.kernels.cuda import candidates, choose, windows

NONE = -1
"""Stands for no forced token."""


def advance(state: SearchState, batch: DecodeBatch, shape: StepShape, logits: Tensor) -> None:
    """As `search.advance`, for a batch of `steps.grouped_batch`. Of candidates with equal totals the one with
    the lower beam wins, then the one with the lower token id."""
    if shape.sampled or shape.penalized:  # PyTorch's operations
        tokens, logprobs, normalizers, faulty = search.candidates(state, batch, shape, logits)
    else:
        tokens, logprobs, normalizers, faulty = likeliest(state, batch, logits)
    chosen, parents = extend(state, batch, tokens, logprobs, faulty)
    sums = state.window_sums
    if sums is not None:
        windows.window_sums(
            logits,
            normalizers,
            chosen,
            parents,
            batch.rows,
            batch.slots,
            state.generated,
            sums.widths,
            state.windows,
            sums.ordered.start,
            len(sums.ordered),
        )


def likeliest(
    state: SearchState, batch: DecodeBatch, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The candidates of each row, from `logits` [rows, vocab], which are overwritten; see
    `candidates.merge`."""
    rules = state.rules
    parts = candidates.scan(
        logits,
        batch.slots,
        batch.beams,
        state.sequences,
        state.suffix_matches,
        state.generated,
        state.ngram_sizes,
        state.min_new_tokens,
        rules.eos_id,
    )
    return candidates.merge(
        *parts,
        batch.slots,
        batch.beams,
        state.generated,
        state.max_new_tokens,
        NONE if rules.forced_bos_id is None else rules.forced_bos_id,
        NONE if rules.forced_eos_id is None else rules.forced_eos_id,
    )


def extend(
    state: SearchState, batch: DecodeBatch, tokens: Tensor, logprobs: Tensor, faulty: Tensor
) -> tuple[Tensor, Tensor]:
    """Extend each search by one of its candidates for each beam; see `choose.choose`."""
    return choose.choose(
        tokens,
        logprobs,
        faulty,
        batch.slots,
        batch.beams,
        batch.rows,
        state.status,
        state.last_token,
        state.generated,
        state.totals,
        state.sequences,
        state.suffix_matches,
        state.logprobs,
        state.beam_indirection,
        state.finished_count,
        state.finished_scores,
        state.finished_order,
        state.finished_lengths,
        state.finished_sequences,
        state.finished_logprobs,
        state.finished_indirection,
        state.max_new_tokens,
        state.early_stopping,
        state.length_penalty,
        state.rules.eos_id,
    )
