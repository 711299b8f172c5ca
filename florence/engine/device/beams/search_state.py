"""The searches of all slots as tensors on the device; `search.py` advances them.

Knows beams, tokens and cache rows; knows nothing about logits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from florence.engine.device.beams.reference import UNREACHABLE, TokenRules
from florence.engine.device.beams.sampling import Sampling
from florence.engine.device.beams.window_sums import WindowSums
from florence.engine.request import GenerationOptions
from florence.engine.slots import Slot
from florence.model.attention import DecodeBatch
from florence.types.bounds import MAX_BEAMS, WINDOWS

RUNNING, DONE, FAULTY = 0, 1, 2
"""Values of `SearchState.status`; FAULTY: the logits were NaN or infinite."""

_EARLY_STOPPING = {True: 0, False: 1, "never": 2}


def _bits(value: float) -> int:
    """A float64 as the integer with the same bits."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


_NUMBERS: Final[Mapping[str, Callable[[GenerationOptions], int]]] = MappingProxyType(
    {
        "status": lambda _: RUNNING,
        "last_token": lambda _: 0,
        "generated": lambda _: 0,
        "finished_count": lambda _: 0,
        "beams": lambda options: options.num_beams,
        "ngram_sizes": lambda options: options.no_repeat_ngram_size,
        "early_stopping": lambda options: _EARLY_STOPPING[options.early_stopping],
        "max_new_tokens": lambda options: options.max_new_tokens,
        "min_new_tokens": lambda options: options.min_new_tokens,
        "length_penalty": lambda options: _bits(options.length_penalty),
        "samples": lambda options: int(options.do_sample),
        "seed": lambda options: options.seed or 0,
        "top_k": lambda options: options.top_k,
        "temperature": lambda options: _bits(options.temperature),
        "repetition_penalty": lambda options: _bits(options.repetition_penalty),
        "tail": lambda options: _bits(1 - options.top_p),
    }
)
"""The scalars that `SearchState` has for each slot, in the order of their rows, and the value of each at the
start of a search; a float64 is stored by its bits. `decided` is the first two."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes of a step's tensors, except its numbers of requests and rows.

    `beams`: the most of any request. `length`: positions of a sequence, more than any has in use. `greedy`:
    whether any request has one beam. `encoder_length`: positions of the longest encoder states. `sampled`:
    whether any request samples. `penalized`: whether any has a repetition penalty.
    """

    beams: int
    length: int
    greedy: bool
    encoder_length: int
    sampled: bool = False
    penalized: bool = False


class Constants:
    """Constants as tensors on the device: given a Python number, `torch.where` fills a new tensor with it at
    each call, which launches a kernel on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.infinity = torch.full((), torch.inf, device=device)
        self.minus_infinity = torch.full((), -torch.inf, device=device)
        self.zero = torch.full((), 0, device=device)
        self.minus_one = torch.full((), -1, device=device)
        self.largest = torch.full((), torch.iinfo(torch.int64).max, device=device)
        self.done = torch.full((), DONE, device=device)
        self.faulty = torch.full((), FAULTY, device=device)


class SearchState:
    """Buffers of all slots; s: slots, b: MAX_BEAMS, t: `max_positions` = `room` + 1.

    `sequences` [s, b, t]: tokens, the start token first. `logprobs` [s, b, t]: of each token.
    `suffix_matches` [s, b, t]: at e, how many tokens just before position e equal those at the end of the
    sequence (the longest common suffix). `beam_indirection` int32 [s, b, t]: the cache row that holds each
    position of a beam's past. `generated` [s]: tokens after the start token. `last_token` [s]: the likeliest
    continuation in the last step, which with one beam is the chosen token. `totals` [s, b]: sums of
    log-probabilities. `finished_*` [s, b, ...]: the finished hypotheses; `finished_order` numbers them by
    age. `free_host_reads`: as `Backend` has it.

    `windows` [rows + 1, t, w]: the window sums of the token at each position of a cache row. Each position of
    a row is written once in a request's life, so `beam_indirection` says where the sums of a beam's past are,
    and nothing is copied when beams are reordered; `finished_indirection` does so for finished hypotheses.
    The last row is never read. Empty where no tokens are ordered.
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
        self.constants = Constants(device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.max_positions = room + 1  # the start token, and each generated token
        positions = (MAX_BEAMS, self.max_positions)
        self.sequences, self.suffix_matches = zeros(*positions), zeros(*positions)
        self.sequences[:, :, 0].fill_(rules.start_id)  # never overwritten: each beam begins with it
        self.beam_indirection = zeros(*positions, dtype=torch.int32)  # as kernels read it
        self.logprobs = zeros(*positions, dtype=torch.float32)
        self.totals = zeros(MAX_BEAMS, dtype=torch.float32)
        self.finished_sequences = zeros(*positions)
        self.finished_logprobs = zeros(*positions, dtype=torch.float32)
        self.finished_scores = zeros(MAX_BEAMS, dtype=torch.float64)
        self.finished_lengths, self.finished_order = zeros(MAX_BEAMS), zeros(MAX_BEAMS)
        self.finished_indirection = zeros(*positions, dtype=torch.int32)
        cache_rows = slots * MAX_BEAMS if rows is None else rows
        self.unused_row = torch.full((), cache_rows, device=device)
        widths = 0 if rules.ordered is None else len(WINDOWS)
        self.windows = torch.zeros(cache_rows + 1, self.max_positions, widths, device=device)
        # One tensor for all scalars of a slot, so that one write starts a search.
        self._numbers = torch.zeros(len(_NUMBERS), slots, dtype=torch.int64, device=device)
        numbers: dict[str, Tensor] = dict(zip(_NUMBERS, self._numbers, strict=True))
        self.status, self.last_token = numbers["status"], numbers["last_token"]
        self.decided = self._numbers[:2]  # both: one copy to the host
        self.status.fill_(DONE)  # no slot is in use yet
        self.generated, self.finished_count = numbers["generated"], numbers["finished_count"]
        self.beams, self.ngram_sizes = numbers["beams"], numbers["ngram_sizes"]
        self.early_stopping = numbers["early_stopping"]
        self.max_new_tokens, self.min_new_tokens = numbers["max_new_tokens"], numbers["min_new_tokens"]
        self.length_penalty = numbers["length_penalty"].view(torch.float64)
        self.sampling = Sampling(
            numbers["samples"],
            numbers["seed"],
            numbers["top_k"],
            *(numbers[name].view(torch.float64) for name in ("temperature", "repetition_penalty", "tail")),
        )
        # Initial totals of a search, by its number of beams: [MAX_BEAMS + 1, MAX_BEAMS].
        beam = torch.arange(MAX_BEAMS, device=device)
        absent = beam >= torch.arange(MAX_BEAMS + 1, device=device)[:, None]
        first = torch.full_like(beam, UNREACHABLE, dtype=torch.float32)
        first[0].fill_(0.0)
        self._first_totals = first.masked_fill(absent, -torch.inf)

    def start(self, starts: Tensor) -> None:
        """Start searches, given `starts_of` of their requests on the device; the host reads nothing."""
        slots, numbers, rows = starts[0], starts[1:-MAX_BEAMS], starts[-MAX_BEAMS:]
        self._numbers[:, slots] = numbers
        self.beam_indirection[slots, :, 0] = rows.T.int()
        self.totals[slots] = self._first_totals[numbers[list(_NUMBERS).index("beams")]]

    def tokens(self, batch: DecodeBatch) -> tuple[Tensor, Tensor]:
        """The token that each row reads next, and its position; both int64 [rows]."""
        slots = batch.slots[batch.request_of]
        # A finished request in its extra step may have filled all positions.
        positions = self.generated[slots].clamp(max=self.max_positions - 2)
        return self.sequences[slots, batch.beam_of, positions], positions


def starts_of(requests: Sequence[tuple[Slot, GenerationOptions]]) -> Tensor:
    """What `SearchState.start` needs to know of new requests, as one host tensor: int64 [values,
    requests]."""
    columns = []
    for slot, options in requests:
        numbers = [initial(options) for initial in _NUMBERS.values()]
        rows = [*slot.rows, *slot.rows[:1] * (MAX_BEAMS - len(slot.rows))]
        columns.append([slot.index, *numbers, *rows])
    return torch.tensor(columns).T.contiguous()
