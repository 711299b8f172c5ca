"""A step of beam search for all slots at once; `reference.py` defines the results.

`advance` takes a step's logits and extends every search of a `SearchState` by one token, without reading a
value on the host (unless that is free: then it skips work). Token ids equal the reference's;
log-probabilities equal them within the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from florence.engine.device.beams.sampling import penalize
from florence.engine.device.beams.search_state import RUNNING, SearchState, StepShape
from florence.model.attention import DecodeBatch

SearchStep = Callable[[SearchState, DecodeBatch, StepShape, Tensor], None]
"""`advance`, or a function that computes the same."""


def advance(state: SearchState, batch: DecodeBatch, shape: StepShape, logits: Tensor) -> None:
    """Choose the next tokens of every search in the batch from float32 `logits` [rows, vocab], which are
    overwritten.

    A search that is not running stays unchanged.
    """
    step = BatchedAdvance(state, batch, shape)
    tokens, logprobs, faulty = step.candidates_of_rows(logits)
    step.choose(tokens, logprobs)
    step.store_windows(logits)
    faulty = step.running & faulty
    state.status[batch.slots] = torch.where(faulty, state.constants.faulty, state.status[batch.slots])


def candidates(
    state: SearchState, batch: DecodeBatch, shape: StepShape, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The candidates to follow each row, and their log-probabilities, [rows, 2 * beams] each; each row's
    normalizer, which was subtracted from its logits, [rows]; whether a request's logits are NaN or infinite,
    [requests]. `logits` are overwritten."""
    step = BatchedAdvance(state, batch, shape)
    tokens, logprobs, faulty = step.candidates_of_rows(logits)
    return tokens, logprobs, step.normalizer, faulty


class BatchedAdvance:
    """One call of `advance`: the part of the state that belongs to the batch, and intermediate tensors.

    n: requests, k: `shape.beams`, r: rows, t: `shape.length`.
    """

    def __init__(self, state: SearchState, batch: DecodeBatch, shape: StepShape) -> None:
        self.state, self.batch, self.shape = state, batch, shape
        slots = batch.slots
        self.running = state.status[slots] == RUNNING  # [n]
        self.beams = state.beams[slots]
        self.generated = state.generated[slots]
        self.max_new_tokens, self.length_penalty = state.max_new_tokens[slots], state.length_penalty[slots]
        self.sequences = state.sequences[slots, : shape.beams, : shape.length]  # [n, k, t]
        self.suffix_matches = state.suffix_matches[slots, : shape.beams, : shape.length]
        self.positions = torch.arange(shape.length, device=slots.device)
        self.own_rows = batch.rows[batch.rows_of]  # [n, k] of the caches

    def candidates_of_rows(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The 2k likeliest next tokens of each row and their log-probabilities, both [r, 2k], and whether a
        request's logits are NaN or infinite, [n]."""
        batch, rules = self.batch, self.state.rules
        normalizer = logits.logsumexp(-1)  # [r]
        faulty = (~normalizer.isfinite()[batch.rows_of] & batch.is_beam).any(-1)
        if self.shape.penalized:
            self._penalize(logits, normalizer)
        self.ban(logits)
        if self.shape.greedy:  # greedy search normalises after the rules, beam search before
            greedy = (self.beams == 1)[batch.request_of]
            normalizer = torch.where(greedy, logits.logsumexp(-1), normalizer)
        self.normalizer = normalizer
        values, tokens = logits.topk(min(2 * self.shape.beams, logits.shape[-1]), dim=-1)
        logprobs = values - normalizer[:, None]
        if self.shape.sampled:
            self._draw(logits, tokens, logprobs)
        generated = self.generated[batch.request_of]
        if rules.forced_bos_id is not None:
            _force(tokens, logprobs, generated == 0, rules.forced_bos_id)
        if rules.forced_eos_id is not None:
            last = generated + 1 == self.max_new_tokens[batch.request_of]
            _force(tokens, logprobs, last, rules.forced_eos_id)
        return tokens, logprobs, faulty

    def _penalize(self, logits: Tensor, normalizer: Tensor) -> None:
        """Apply the repetition penalty to the tokens of each row's sequence: to logits in greedy search, to
        log-probabilities (logits less `normalizer` [r]) in beam search."""
        batch, requests = self.batch, self.batch.request_of
        known = self.positions <= self.generated[:, None]  # [n, t]
        seen = torch.where(known[:, None], self.sequences, self.state.rules.start_id)
        offsets = torch.where((self.beams == 1)[requests], 0.0, normalizer)
        penalties = self.state.sampling.penalty[batch.slots].float()
        penalize(logits, seen[requests, batch.beam_of], penalties[requests], offsets)

    def _draw(self, logits: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """In the row of each request that samples, make the sampled token the only candidate [r, 2k]."""
        batch, sampling = self.batch, self.state.sampling
        drawing = (sampling.samples[batch.slots] > 0) & self.running  # [n]
        picked = torch.arange(len(drawing), device=drawing.device)
        if self.state.free_host_reads:  # skip requests that don't sample
            picked = picked[drawing]
        rows = batch.rows_of[picked, 0]
        token, logprob = sampling.draw(logits[rows], batch.slots[picked], self.generated[picked])
        drawn = torch.zeros_like(self.generated).index_copy(0, picked, token)  # [n]
        chance = logprobs.new_zeros(len(drawing)).index_copy(0, picked, logprob)
        owner = batch.request_of
        _force(tokens, logprobs, drawing[owner], drawn[owner], chance[owner])

    def ban(self, logits: Tensor) -> None:
        """Set repeated n-grams, and EOS before the minimum length, to -inf.

        The n-gram rule of transformers' `NoRepeatNGramLogitsProcessor` by suffix matches: where at least n -
        1 tokens before position e equal the end of the sequence, the token at e would repeat an n-gram.
        """
        batch, state = self.batch, self.state
        sizes = state.ngram_sizes[batch.slots]
        known = self.positions <= self.generated[:, None]  # [n, t]
        banned = (self.suffix_matches >= (sizes - 1)[:, None, None]) & (known & (sizes > 0)[:, None])[:, None]
        limits = torch.where(banned, state.constants.minus_infinity, state.constants.infinity)  # [n, k, t]
        rows = batch.request_of, batch.beam_of
        logits.scatter_reduce_(1, self.sequences[rows], limits[rows].to(logits.dtype), "amin")
        early = (self.generated < state.min_new_tokens[batch.slots])[batch.request_of]
        logits[:, state.rules.eos_id].masked_fill_(early, -torch.inf)

    def choose(self, tokens: Tensor, logprobs: Tensor) -> None:
        """From candidates [r, 2k] to the next beams and the finished hypotheses."""
        state, beams = self.state, self.shape.beams
        totals = state.totals[self.batch.slots, :beams]  # [n, k]
        offered = self._by_request(logprobs, state.constants.minus_infinity)  # [n, k, c]
        width = offered.shape[-1]
        best, flat = (offered + totals[..., None]).flatten(1).topk(2 * beams if width > 1 else beams, dim=-1)
        parents = flat // width  # [n, 2k] each
        token = self._by_request(tokens, state.constants.zero).flatten(1).gather(1, flat)
        logprob = offered.flatten(1).gather(1, flat)
        rank = torch.arange(best.shape[1], device=best.device)
        counts = rank < 2 * self.beams[:, None]
        ends = token == state.rules.eos_id
        hypotheses = _Finished(self, parents, token, logprob)
        # A finished candidate that ranks after the open beams is dropped.
        hypotheses.add_all(ends & (rank < self.beams[:, None]) & self.running[:, None], best)
        full = hypotheses.count == self.beams
        worst = hypotheses.worst()
        done = full & ((state.early_stopping[self.batch.slots] == 0) | self._beaten(worst, best[:, 0]))
        done |= full & (self.beams == 1)
        # The first `beams` candidates that continue, in order of rank.
        nth = (counts & ~ends).cumsum(1) - 1
        chosen = torch.zeros(len(best), beams + 1, dtype=torch.int64, device=best.device)
        target = torch.where(counts & ~ends & (nth < beams), nth, beams)
        chosen.scatter_(1, target, rank.expand_as(target))
        chosen = chosen[:, :beams]  # [n, k] ranks
        is_open = torch.arange(beams, device=best.device) < torch.minimum(self.beams, nth[:, -1] + 1)[:, None]
        next_totals = torch.where(is_open, best.gather(1, chosen), state.constants.minus_infinity)
        at_limit = self.running & ~done & (self.generated + 1 == self.max_new_tokens)
        if self._may_be_last():
            hypotheses.add_open(chosen, is_open & at_limit[:, None], next_totals)
        done = (done & self.running) | at_limit
        hypotheses.store()
        last_token = state.last_token[self.batch.slots]
        state.last_token[self.batch.slots] = torch.where(self.running, token[:, 0], last_token)
        self._store(parents, token, logprob, chosen, next_totals, done)

    def _may_be_last(self) -> bool:
        """Whether a request may reach its length limit in this step; True where the host can't know."""
        return not self.state.free_host_reads or bool((self.generated + 1 == self.max_new_tokens).any())

    def _beaten(self, worst: Tensor, best: Tensor) -> Tensor:
        """Whether no open beam can beat the worst finished hypothesis, [n]."""
        at_full_length = (self.state.early_stopping[self.batch.slots] == 2) & (self.length_penalty > 0)
        length = torch.where(at_full_length, self.max_new_tokens, self.generated + 1)
        return worst >= best.double() / length.double() ** self.length_penalty

    def _store(
        self, parents: Tensor, token: Tensor, logprob: Tensor, chosen: Tensor, totals: Tensor, done: Tensor
    ) -> None:
        """Replace the beams of the running slots by the chosen ones, [n, k] each."""
        state, batch, k, t = self.state, self.batch, self.shape.beams, self.shape.length
        slots = batch.slots
        parent = parents.gather(1, chosen)[..., None].expand(-1, -1, t)  # [n, k, t]
        token, logprob = token.gather(1, chosen), logprob.gather(1, chosen)
        self._chosen, self._parent_rows = token, batch.rows_of.gather(1, parent[..., 0])
        here = self.positions == (self.generated + 1)[:, None, None]  # [n, 1, t]
        matches = self.suffix_matches.gather(1, parent)
        sequences = torch.where(here, token[..., None], self.sequences.gather(1, parent))
        repeated = sequences[..., :-1] == token[..., None]
        grown = torch.where(repeated, matches[..., :-1] + 1, state.constants.zero)
        matches = torch.cat([torch.zeros_like(matches[..., :1]), grown], dim=-1)
        history = state.logprobs[slots, :k, :t].gather(1, parent)
        history = torch.where(here, logprob[..., None], history)
        indirection = state.beam_indirection[slots, :k, :t].gather(1, parent)
        indirection = torch.where(here, self.own_rows[..., None].int(), indirection)
        for buffer, new in (
            (state.sequences, sequences),
            (state.suffix_matches, matches),
            (state.logprobs, history),
            (state.beam_indirection, indirection),
        ):
            old = buffer[slots, :k, :t]
            buffer[slots, :k, :t] = torch.where(self.running[:, None, None], new, old)
        state.totals[slots, :k] = torch.where(self.running[:, None], totals, state.totals[slots, :k])
        state.generated[slots] += self.running
        state.status[slots] = torch.where(self.running & done, state.constants.done, state.status[slots])

    def store_windows(self, logits: Tensor) -> None:
        """Keep the window sums of the tokens that `choose` chose, computed from the same logits."""
        state, sums, batch = self.state, self.state.window_sums, self.batch
        if sums is None or (state.free_host_reads and not bool(sums.contains(self._chosen).any())):
            return
        windows = sums(logits, self.normalizer, self._parent_rows, self._chosen)  # [n, k, w]
        rows = torch.where(batch.is_beam & self.running[:, None], self.own_rows, state.unused_row)
        # A finished request in its extra step may have filled all positions.
        position = (self.generated + 1).clamp(max=state.max_positions - 1)[:, None]
        state.windows[rows, position.expand_as(rows)] = windows

    def _by_request(self, values: Tensor, fill: Tensor) -> Tensor:
        """Values of rows [r, any] grouped by request, [n, k, any]; `fill` where a request has fewer beams."""
        result: Tensor = torch.where(self.batch.is_beam[..., None], values[self.batch.rows_of], fill)
        return result


class _Finished:
    """The finished hypotheses of the batch, [n, k, ...], while a step adds to them."""

    def __init__(self, step: BatchedAdvance, parents: Tensor, token: Tensor, logprob: Tensor) -> None:
        state, slots, k, t = step.state, step.batch.slots, step.shape.beams, step.shape.length
        self._step, self._parents, self._token, self._logprob = step, parents, token, logprob
        self._history = state.logprobs[slots, :k, :t]
        self._indices = torch.arange(k, device=slots.device)
        self._changed = False
        self.count = state.finished_count[slots]
        self.scores = state.finished_scores[slots, :k]
        self.order = state.finished_order[slots, :k]
        self.lengths = state.finished_lengths[slots, :k]
        self.sequences = state.finished_sequences[slots, :k, :t]
        self.logprobs = state.finished_logprobs[slots, :k, :t]
        self._rows = state.beam_indirection[slots, :k, :t]
        self.indirection = state.finished_indirection[slots, :k, :t]

    def worst(self) -> Tensor:
        """The lowest score, [n]; +inf without hypotheses."""
        kept = self._indices < self.count[:, None]
        return torch.where(kept, self.scores, self._step.state.constants.infinity).amin(-1)

    def add_all(self, wanted: Tensor, totals: Tensor) -> None:
        """Add the candidates that are `wanted` [n, 2k], in the order of their rank, with their totals [n,
        2k]."""
        may_skip = self._step.state.free_host_reads
        if may_skip and not bool(wanted.any()):
            return
        for rank in range(self._step.shape.beams):
            if may_skip and not bool(wanted[:, rank].any()):
                continue
            # EOS, the last token, has no cache row.
            self._add(torch.full_like(self.count, rank), wanted[:, rank], totals[:, rank], beam=0)

    def add_open(self, chosen: Tensor, wanted: Tensor, totals: Tensor) -> None:
        """Add the open beams that are `wanted` [n, k]; `chosen` [n, k]: their ranks."""
        for beam in range(self._step.shape.beams):
            self._add(chosen[:, beam], wanted[:, beam], totals[:, beam], beam)

    def _add(self, rank: Tensor, wanted: Tensor, total: Tensor, beam: int) -> None:
        """Add each request's candidate of `rank` [n], with the total score `total` [n], if it is `wanted` [n]
        and among the best. `beam`: the beam whose row has its last token."""
        step = self._step
        generated = step.generated + 1
        score = total.double() / generated.double() ** step.length_penalty
        full = self.count == step.beams
        worst = self.worst()
        keep = wanted & (~full | (score > worst))
        # It replaces the worst hypothesis; of equally bad ones, the oldest.
        kept = self._indices < self.count[:, None]
        is_worst = kept & (self.scores == worst[:, None])
        oldest = torch.where(is_worst, self.order, step.state.constants.largest).argmin(-1)
        index = torch.where(full, oldest, self.count)
        here = (self._indices == index[:, None]) & keep[:, None]  # [n, k]
        self.scores = torch.where(here, score[:, None], self.scores)
        newest = torch.where(kept, self.order, step.state.constants.minus_one).amax(-1) + 1
        self.order = torch.where(here, newest[:, None], self.order)
        self.lengths = torch.where(here, generated[:, None], self.lengths)
        self.count = self.count + (keep & ~full)
        parent = self._parents.gather(1, rank[:, None])[..., None].expand(-1, 1, step.shape.length)
        end = step.positions == generated[:, None, None]  # [n, 1, t]
        token = self._token.gather(1, rank[:, None])[..., None]
        logprob = self._logprob.gather(1, rank[:, None])[..., None]
        sequence = torch.where(end, token, step.sequences.gather(1, parent))
        history = torch.where(end, logprob, self._history.gather(1, parent))
        self.sequences = torch.where(here[..., None], sequence, self.sequences)
        self.logprobs = torch.where(here[..., None], history, self.logprobs)
        row = step.own_rows[:, beam, None, None].int()
        indirection = torch.where(end, row, self._rows.gather(1, parent))
        self.indirection = torch.where(here[..., None], indirection, self.indirection)
        self._changed = True

    def store(self) -> None:
        """Write the hypotheses back to the state if one was added."""
        if not self._changed:
            return
        state, slots = self._step.state, self._step.batch.slots
        k, t = self._step.shape.beams, self._step.shape.length
        state.finished_count[slots] = self.count
        state.finished_scores[slots, :k] = self.scores
        state.finished_order[slots, :k] = self.order
        state.finished_lengths[slots, :k] = self.lengths
        state.finished_sequences[slots, :k, :t] = self.sequences
        state.finished_logprobs[slots, :k, :t] = self.logprobs
        state.finished_indirection[slots, :k, :t] = self.indirection


def _force(
    tokens: Tensor, logprobs: Tensor, forced: Tensor, token: int | Tensor, logprob: float | Tensor = 0.0
) -> None:
    """In rows where `forced` [r], make `token` the only candidate, with this log-probability; both [r] or one
    for all."""
    logprobs.masked_fill_(forced[:, None], -torch.inf)
    for column, value in ((tokens[:, 0], token), (logprobs[:, 0], logprob)):
        if isinstance(value, Tensor):
            column.copy_(torch.where(forced, value, column))
        else:
            column.masked_fill_(forced, value)
