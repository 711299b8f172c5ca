"""The searches of many requests as tensors on the device: what `reference.py` does with lists, for all slots
at once.

One `SearchState` holds every slot's beams, sequences and finished hypotheses; `advance` takes a step's logits
and moves all of them on by one token, without a look at any value from the host. Results equal the
reference's: token ids always, log-probabilities within the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from florence.engine.device.reference import UNREACHABLE, TokenRules
from florence.engine.request import GenerationOptions
from florence.model.decode import DecodeBatch
from florence.types.bounds import MAX_BEAMS

RUNNING, DONE, FAULTY = 0, 1, 2
"""What `SearchState.status` says of a slot; FAULTY: its logits were no numbers."""

_EARLY = {True: 0, False: 1, "never": 2}


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes that a step's tensors have, beside its numbers of requests and rows.

    `beams`: of the widest request. `length`: positions looked at, above the longest sequence. `greedy`:
    whether a request with one beam is there. `encoder_length`: positions of the longest encoder states.
    """

    beams: int
    length: int
    greedy: bool
    encoder_length: int


class SearchState:
    """Buffers of all slots; `s` stands for slots, `b` for MAX_BEAMS, `t` for `room` + 1.

    `sequences`, `logprobs`, `runs`, `ancestry` [s, b, t]: tokens (the start token first), the
    log-probability of each, the n-gram rule's memory, and the cache row that holds each position of a beam's
    past. `generated` [s]: tokens after the start token. `last_token` [s]: the likeliest continuation of the
    last step, which is the token of a search with one beam. `totals` [s, b]: sums of log-probabilities.
    `finished_*` [s, b, ...]: the finished hypotheses kept, `order` says which came first.
    """

    def __init__(self, slots: int, room: int, rules: TokenRules, device: torch.device) -> None:
        self.rules = rules
        self.device = device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.places = room + 1  # of a sequence: the start token's, and one for each token generated
        places = (MAX_BEAMS, self.places)
        self.sequences, self.runs = zeros(*places), zeros(*places)
        self.ancestry = zeros(*places)
        self.logprobs = zeros(*places, dtype=torch.float32)
        self.totals = zeros(MAX_BEAMS, dtype=torch.float32)
        self.generated = zeros()
        self.decided = torch.zeros(2, slots, dtype=torch.int64, device=device)  # read together, by the host
        self.status, self.last_token = self.decided
        self.status.fill_(DONE)  # nobody is there yet
        self.finished_sequences = zeros(*places)
        self.finished_logprobs = zeros(*places, dtype=torch.float32)
        self.finished_scores = zeros(MAX_BEAMS, dtype=torch.float64)
        self.finished_lengths, self.finished_order = zeros(MAX_BEAMS), zeros(MAX_BEAMS)
        self.finished_count = zeros()
        # What each request asked for; [s] each.
        self.beams, self.most, self.fewest, self.ngram, self.early = (zeros() for _ in range(5))
        self.penalty = zeros(dtype=torch.float64)

    def start(self, slot: int, rows: Sequence[int], options: GenerationOptions) -> None:
        """Begin the search of a new request in a slot, its beams in these rows of the caches."""
        # Filled and not assigned, which on a GPU would be a copy from the host that waits for the device.
        self.sequences[slot, :, 0].fill_(self.rules.start_id)
        for beam, row in enumerate(rows):
            self.ancestry[slot, beam, 0].fill_(row)
        self.runs[slot, :, 0].fill_(0)
        self.totals[slot].fill_(-torch.inf)
        self.totals[slot, : options.num_beams].fill_(UNREACHABLE)
        for value, buffer in (
            (0.0, self.totals[:, 0]),
            (0, self.generated),
            (RUNNING, self.status),
            (0, self.finished_count),
            (options.num_beams, self.beams),
            (options.max_new_tokens, self.most),
            (options.min_new_tokens, self.fewest),
            (options.no_repeat_ngram_size, self.ngram),
            (_EARLY[options.early_stopping], self.early),
            (options.length_penalty, self.penalty),
        ):
            buffer[slot].fill_(value)

    def tokens(self, members: DecodeBatch) -> tuple[Tensor, Tensor]:
        """What each row reads next, and at which position; int64 [rows]."""
        slots = members.slots[members.request_of]
        # One that is done and still runs along may stand behind its last position.
        positions = self.generated[slots].clamp(max=self.sequences.shape[-1] - 2)
        return self.sequences[slots, members.beam_of, positions], positions


def advance(state: SearchState, members: DecodeBatch, shape: StepShape, logits: Tensor) -> None:
    """Let every member's search choose its next tokens by float32 `logits` [rows, vocab], which are
    overwritten.

    A slot that is not running keeps all it has, but its status.
    """
    step = _Step(state, members, shape)
    tokens, logprobs, faulty = step.candidates_of_rows(logits)
    step.choose(tokens, logprobs)
    state.status[members.slots] = torch.where(step.running & faulty, FAULTY, state.status[members.slots])


class _Step:
    """One call of `advance`: the members' part of the state, and the tensors made on the way.

    `n` stands for requests, `k` for `shape.beams`, `r` for rows, `t` for `shape.length`.
    """

    def __init__(self, state: SearchState, members: DecodeBatch, shape: StepShape) -> None:
        self.state, self.members, self.shape = state, members, shape
        slots = members.slots
        self.running = state.status[slots] == RUNNING  # [n]
        self.beams = state.beams[slots]
        self.generated = state.generated[slots]
        self.most, self.penalty = state.most[slots], state.penalty[slots]
        self.sequences = state.sequences[slots, : shape.beams, : shape.length]  # [n, k, t]
        self.runs = state.runs[slots, : shape.beams, : shape.length]
        self.places = torch.arange(shape.length, device=slots.device)

    def candidates_of_rows(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The 2k likeliest next tokens of each row and their log-probabilities, both [r, 2k], and whether a
        request has values that are no numbers, [n]."""
        members, rules = self.members, self.state.rules
        normalizer = logits.logsumexp(-1)  # [r]
        faulty = self._of_requests(~normalizer.isfinite()[:, None], fill=False).flatten(1).any(-1)
        self._ban(logits)
        if self.shape.greedy:  # greedy search normalises after the rules, beam search before them
            greedy = (self.beams == 1)[members.request_of]
            normalizer = torch.where(greedy, logits.logsumexp(-1), normalizer)
        values, tokens = logits.topk(min(2 * self.shape.beams, logits.shape[-1]), dim=-1)
        logprobs = values - normalizer[:, None]
        generated = self.generated[members.request_of]
        if rules.forced_bos_id is not None:
            _force(tokens, logprobs, generated == 0, rules.forced_bos_id)
        if rules.forced_eos_id is not None:
            last = generated + 1 == self.most[members.request_of]
            _force(tokens, logprobs, last, rules.forced_eos_id)
        return tokens, logprobs, faulty

    def _ban(self, logits: Tensor) -> None:
        """Repeated n-grams and an EOS that comes too early get -inf.

        `runs[e]` counts how many tokens before place e equal those before the end, one by one: if at least
        n - 1 do, the token at e would complete an n-gram that is there already.
        """
        members, state = self.members, self.state
        sizes = state.ngram[members.slots]
        known = self.places <= self.generated[:, None]  # [n, t]
        banned = (self.runs >= (sizes - 1)[:, None, None]) & (known & (sizes > 0)[:, None])[:, None]
        limits = torch.where(banned, -torch.inf, torch.inf)  # [n, k, t]
        rows = members.request_of, members.beam_of
        logits.scatter_reduce_(1, self.sequences[rows], limits[rows].to(logits.dtype), "amin")
        early = (self.generated < state.fewest[members.slots])[members.request_of]
        eos_id = state.rules.eos_id
        logits[:, eos_id] = torch.where(early, -torch.inf, logits[:, eos_id])

    def choose(self, tokens: Tensor, logprobs: Tensor) -> None:
        """From candidates [r, 2k] to the next beams and the finished hypotheses."""
        state, beams = self.state, self.shape.beams
        totals = state.totals[self.members.slots, :beams]  # [n, k]
        offered = self._of_requests(logprobs, fill=-torch.inf)  # [n, k, c]
        width = offered.shape[-1]
        best, flat = (offered + totals[..., None]).flatten(1).topk(2 * beams if width > 1 else beams, dim=-1)
        parents = flat // width  # [n, 2k] each
        token = self._of_requests(tokens, fill=0).flatten(1).gather(1, flat)
        logprob = offered.flatten(1).gather(1, flat)
        rank = torch.arange(best.shape[1], device=best.device)
        counts = rank < 2 * self.beams[:, None]
        ends = token == state.rules.eos_id
        hypotheses = _Finished(self, parents, token, logprob)
        # One that ranks behind the open beams is dropped.
        hypotheses.add_all(ends & (rank < self.beams[:, None]) & self.running[:, None], best)
        full = hypotheses.count == self.beams
        worst = hypotheses.worst()
        done = full & ((state.early[self.members.slots] == 0) | self._beaten(worst, best[:, 0]))
        done |= full & (self.beams == 1)
        # The first beams of those that go on, in their order.
        nth = (counts & ~ends).cumsum(1) - 1
        chosen = torch.zeros(len(best), beams + 1, dtype=torch.int64, device=best.device)
        target = torch.where(counts & ~ends & (nth < beams), nth, beams)
        chosen.scatter_(1, target, rank.expand_as(target))
        chosen = chosen[:, :beams]  # [n, k] ranks
        is_open = torch.arange(beams, device=best.device) < torch.minimum(self.beams, nth[:, -1] + 1)[:, None]
        next_totals = torch.where(is_open, best.gather(1, chosen), -torch.inf)
        at_limit = self.running & ~done & (self.generated + 1 == self.most)
        if self._may_be_last():
            hypotheses.add_open(chosen, is_open & at_limit[:, None], next_totals)
        done = (done & self.running) | at_limit
        hypotheses.store()
        last_token = state.last_token[self.members.slots]
        state.last_token[self.members.slots] = torch.where(self.running, token[:, 0], last_token)
        self._store(parents, token, logprob, chosen, next_totals, done)

    def _may_be_last(self) -> bool:
        """On a CPU a look is cheaper than the work that it saves; elsewhere the host never looks."""
        if self.generated.device.type != "cpu":
            return True
        return bool((self.generated + 1 == self.most).any())

    def _beaten(self, worst: Tensor, best: Tensor) -> Tensor:
        """Whether no open beam can beat the worst hypothesis kept, [n]."""
        at_full_length = (self.state.early[self.members.slots] == 2) & (self.penalty > 0)
        length = torch.where(at_full_length, self.most, self.generated + 1)
        return worst >= best.double() / length.double() ** self.penalty

    def _store(
        self,
        parents: Tensor,
        token: Tensor,
        logprob: Tensor,
        chosen: Tensor,
        totals: Tensor,
        done: Tensor,
    ) -> None:
        """Write the chosen beams over the old ones, in the slots that are running."""
        state, members, k, t = self.state, self.members, self.shape.beams, self.shape.length
        slots = members.slots
        parent = parents.gather(1, chosen)[..., None].expand(-1, -1, t)  # [n, k, t]
        token, logprob = token.gather(1, chosen), logprob.gather(1, chosen)
        here = self.places == (self.generated + 1)[:, None, None]  # [n, 1, t]
        runs = self.runs.gather(1, parent)
        sequences = torch.where(here, token[..., None], self.sequences.gather(1, parent))
        grown = torch.where(sequences[..., :-1] == token[..., None], runs[..., :-1] + 1, 0)
        runs = torch.cat([torch.zeros_like(runs[..., :1]), grown], dim=-1)
        history = state.logprobs[slots, :k, :t].gather(1, parent)
        history = torch.where(here, logprob[..., None], history)
        ancestry = state.ancestry[slots, :k, :t].gather(1, parent)
        ancestry = torch.where(here, members.rows[members.rows_of][..., None], ancestry)
        for buffer, new in (
            (state.sequences, sequences),
            (state.runs, runs),
            (state.logprobs, history),
            (state.ancestry, ancestry),
        ):
            old = buffer[slots, :k, :t]
            buffer[slots, :k, :t] = torch.where(self.running[:, None, None], new, old)
        state.totals[slots, :k] = torch.where(self.running[:, None], totals, state.totals[slots, :k])
        state.generated[slots] += self.running
        state.status[slots] = torch.where(self.running & done, DONE, state.status[slots])

    def _of_requests(self, parts: Tensor, fill: float) -> Tensor:
        """Chunks of the rows [r, any] by request [n, k, any]; `fill` where a request has fewer beams."""
        return parts[self.members.rows_of].masked_fill(~self.members.is_beam[..., None], fill)


class _Finished:
    """The finished hypotheses of the members, [n, k, ...], while a step adds to them."""

    def __init__(self, step: _Step, parents: Tensor, token: Tensor, logprob: Tensor) -> None:
        state, slots, k, t = step.state, step.members.slots, step.shape.beams, step.shape.length
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

    def worst(self) -> Tensor:
        """The lowest score kept, [n]; +inf where none is."""
        kept = self._indices < self.count[:, None]
        return torch.where(kept, self.scores, torch.inf).amin(-1)

    def add_all(self, wanted: Tensor, totals: Tensor) -> None:
        """Offer the candidates that are `wanted` [n, 2k], by rank, with their totals."""
        on_cpu = totals.device.type == "cpu"
        if on_cpu and not bool(wanted.any()):
            return
        for rank in range(self._step.shape.beams):
            if on_cpu and not bool(wanted[:, rank].any()):
                continue
            self._add(torch.full_like(self.count, rank), wanted[:, rank], totals[:, rank])

    def add_open(self, chosen: Tensor, wanted: Tensor, totals: Tensor) -> None:
        """Offer the open beams, `chosen` [n, k] by rank."""
        for beam in range(self._step.shape.beams):
            self._add(chosen[:, beam], wanted[:, beam], totals[:, beam])

    def _add(self, rank: Tensor, wanted: Tensor, total: Tensor) -> None:
        """Offer to each request the candidate of its `rank` [n], if `wanted` [n]."""
        step = self._step
        generated = step.generated + 1
        score = total.double() / generated.double() ** step.penalty
        full = self.count == step.beams
        worst = self.worst()
        keep = wanted & (~full | (score > worst))
        # The worst goes, of equals the one that came first.
        kept = self._indices < self.count[:, None]
        is_worst = kept & (self.scores == worst[:, None])
        oldest = torch.where(is_worst, self.order, torch.iinfo(torch.int64).max).argmin(-1)
        place = torch.where(full, oldest, self.count)
        here = (self._indices == place[:, None]) & keep[:, None]  # [n, k]
        self.scores = torch.where(here, score[:, None], self.scores)
        newest = torch.where(kept, self.order, -1).amax(-1) + 1
        self.order = torch.where(here, newest[:, None], self.order)
        self.lengths = torch.where(here, generated[:, None], self.lengths)
        self.count = self.count + (keep & ~full)
        parent = self._parents.gather(1, rank[:, None])[..., None].expand(-1, 1, step.shape.length)
        end = step.places == generated[:, None, None]  # [n, 1, t]
        token = self._token.gather(1, rank[:, None])[..., None]
        logprob = self._logprob.gather(1, rank[:, None])[..., None]
        sequence = torch.where(end, token, step.sequences.gather(1, parent))
        history = torch.where(end, logprob, self._history.gather(1, parent))
        self.sequences = torch.where(here[..., None], sequence, self.sequences)
        self.logprobs = torch.where(here[..., None], history, self.logprobs)
        self._changed = True

    def store(self) -> None:
        """Write back what changed."""
        if not self._changed:
            return
        state, slots = self._step.state, self._step.members.slots
        k, t = self._step.shape.beams, self._step.shape.length
        state.finished_count[slots] = self.count
        state.finished_scores[slots, :k] = self.scores
        state.finished_order[slots, :k] = self.order
        state.finished_lengths[slots, :k] = self.lengths
        state.finished_sequences[slots, :k, :t] = self.sequences
        state.finished_logprobs[slots, :k, :t] = self.logprobs


def _force(tokens: Tensor, logprobs: Tensor, forced: Tensor, token: int) -> None:
    """In the rows where `forced` [r], let `token` be the one candidate, with a log-probability of 0."""
    tokens[:, 0] = torch.where(forced, token, tokens[:, 0])
    first = torch.arange(logprobs.shape[1], device=logprobs.device) == 0
    logprobs.copy_(torch.where(forced[:, None], torch.where(first, 0.0, -torch.inf), logprobs))
