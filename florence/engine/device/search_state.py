"""The searches of all slots as tensors on the device; `search.py` advances them.

Knows beams, tokens and cache rows; knows nothing about logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from florence.engine.device.reference import UNREACHABLE, TokenRules
from florence.engine.device.window_sums import WindowSums
from florence.engine.request import GenerationOptions
from florence.model.attention import DecodeBatch
from florence.types.bounds import MAX_BEAMS, WINDOWS

RUNNING, DONE, FAULTY = 0, 1, 2
"""Values of `SearchState.status`; FAULTY: the logits were NaN or infinite."""

_EARLY_STOPPING = {True: 0, False: 1, "never": 2}


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes of a step's tensors, except its numbers of requests and rows.

    `beams`: of the widest request. `length`: positions of a sequence, more than the longest one has.
    `greedy`: whether some request has one beam. `encoder_length`: positions of the longest encoder states.
    """

    beams: int
    length: int
    greedy: bool
    encoder_length: int


class SearchState:
    """Buffers of all slots; s: slots, b: MAX_BEAMS, t: `max_positions` = `room` + 1.

    `sequences` [s, b, t]: tokens, the start token first. `logprobs` [s, b, t]: of each token.
    `suffix_matches` [s, b, t]: at e, how many tokens before position e equal those at the end of the
    sequence, one by one backwards. `beam_indirection` int32 [s, b, t]: the cache row that holds each position
    of a beam's past. `generated` [s]: tokens after the start token. `last_token` [s]: the likeliest
    continuation in the last step, which is the token of a search with one beam. `totals` [s, b]: sums of
    log-probabilities. `finished_*` [s, b, ...]: the finished hypotheses; `finished_order` numbers them by
    age. `free_host_reads`: whether `advance` may read values on the host, to skip work.

    `windows` [rows + 1, t, w]: the window sums of the token at each position of a cache row. A row's position
    is written once in a request's life, so that `beam_indirection` says where those of a beam's past are, and
    nothing is copied when beams change places; `finished_indirection` says it of finished hypotheses. The
    last row is never read. It has no room where there are no ordered tokens.
    """

    def __init__(
        self,
        slots: int,
        room: int,
        rules: TokenRules,
        device: torch.device,
        *,
        rows: int | None = None,
        free_host_reads: bool = False,
    ) -> None:
        self.rules, self.free_host_reads = rules, free_host_reads
        self.window_sums = None if rules.ordered is None else WindowSums(rules.ordered, device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.max_positions = room + 1  # of a sequence: the start token, and each generated token
        positions = (MAX_BEAMS, self.max_positions)
        self.sequences, self.suffix_matches = zeros(*positions), zeros(*positions)
        self.beam_indirection = zeros(*positions, dtype=torch.int32)  # as kernels read it
        self.logprobs = zeros(*positions, dtype=torch.float32)
        self.totals = zeros(MAX_BEAMS, dtype=torch.float32)
        self.generated = zeros()
        self.decided = torch.zeros(2, slots, dtype=torch.int64, device=device)  # one copy to the host
        self.status, self.last_token = self.decided
        self.status.fill_(DONE)  # no slot is in use yet
        self.finished_sequences = zeros(*positions)
        self.finished_logprobs = zeros(*positions, dtype=torch.float32)
        self.finished_scores = zeros(MAX_BEAMS, dtype=torch.float64)
        self.finished_lengths, self.finished_order = zeros(MAX_BEAMS), zeros(MAX_BEAMS)
        self.finished_indirection = zeros(*positions, dtype=torch.int32)
        self.finished_count = zeros()
        rows = slots * MAX_BEAMS if rows is None else rows
        widths = 0 if rules.ordered is None else len(WINDOWS)
        self.windows = torch.zeros(rows + 1, self.max_positions, widths, device=device)
        # The requests' options, [s] each.
        self.beams, self.ngram_sizes, self.early_stopping = zeros(), zeros(), zeros()
        self.max_new_tokens, self.min_new_tokens = zeros(), zeros()
        self.length_penalty = zeros(dtype=torch.float64)

    def start(self, slot: int, rows: Sequence[int], options: GenerationOptions) -> None:
        """Start the search of a new request in a slot, whose beams have these rows of the caches."""
        # `fill_`, since an assignment would be a copy from the host that waits for a GPU.
        self.sequences[slot, :, 0].fill_(self.rules.start_id)
        for beam, row in enumerate(rows):
            self.beam_indirection[slot, beam, 0].fill_(row)
        self.suffix_matches[slot, :, 0].fill_(0)
        self.totals[slot].fill_(-torch.inf)
        self.totals[slot, : options.num_beams].fill_(UNREACHABLE)
        for value, buffer in (
            (0.0, self.totals[:, 0]),
            (0, self.generated),
            (RUNNING, self.status),
            (0, self.finished_count),
            (options.num_beams, self.beams),
            (options.max_new_tokens, self.max_new_tokens),
            (options.min_new_tokens, self.min_new_tokens),
            (options.no_repeat_ngram_size, self.ngram_sizes),
            (_EARLY_STOPPING[options.early_stopping], self.early_stopping),
            (options.length_penalty, self.length_penalty),
        ):
            buffer[slot].fill_(value)

    def tokens(self, batch: DecodeBatch) -> tuple[Tensor, Tensor]:
        """The token that each row reads next, and its position; both int64 [rows]."""
        slots = batch.slots[batch.request_of]
        # A finished request in its extra step may have filled all positions.
        positions = self.generated[slots].clamp(max=self.max_positions - 2)
        return self.sequences[slots, batch.beam_of, positions], positions
