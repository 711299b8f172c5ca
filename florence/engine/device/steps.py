"""From the requests that are being decoded to the tensors of one step, and the step itself.

Two ways to lay a step out, which compute the same. `TightSteps` holds just the beams that are there and
reads just their pasts: for a CPU that has the kernel of `cpu_attention`. `DenseSteps` runs over the first
slots and rows of the caches, masked; for a GPU it rounds all sizes up to a few, so that a CUDA graph can be
recorded for each and replayed (`graphs.py`). Everything stays on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from florence.engine.device.search import SearchState, StepShape, advance
from florence.engine.slots import Slot
from florence.model.caches import Caches
from florence.model.decode import DecodeBatch, DenseAttention, Kernel, KernelAttention, decode_step
from florence.model.language import LanguageModel


class StepSequence(Protocol):
    """One request that is being decoded, as far as a step cares; `steps`: how many it has taken."""

    @property
    def slot(self) -> Slot: ...

    @property
    def encoder_length(self) -> int: ...

    @property
    def steps(self) -> int: ...


class Steps(Protocol):
    """Runs one step for some requests; what comes of it lies in the `SearchState`."""

    def run(self, sequences: Sequence[StepSequence]) -> None: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """What a step works with: the model, the caches and the searches, all on one device."""

    language: LanguageModel
    caches: Caches
    state: SearchState

    def dense_step(self, members: DecodeBatch, shape: StepShape) -> None:
        """One step over the first slots and rows of the caches."""
        tokens, positions = self.state.tokens(members)
        length = min(shape.length, self.caches.sizes.decoder_room)
        attention = DenseAttention(
            self.caches,
            members,
            self._ancestry(members, shape.beams, length),
            positions,
            shape.encoder_length,
        )
        logits = decode_step(self.language, self.caches, members.rows, tokens, positions, attention)
        advance(self.state, members, shape, logits)

    def tight_step(self, members: DecodeBatch, shape: StepShape, kernel: Kernel) -> None:
        """One step over just the rows of the members."""
        tokens, positions = self.state.tokens(members)
        ancestry = self._ancestry(members, shape.beams, shape.length)
        attention = KernelAttention(kernel, self.caches, members, ancestry, positions)
        logits = decode_step(self.language, self.caches, members.rows, tokens, positions, attention)
        advance(self.state, members, shape, logits)

    def _ancestry(self, members: DecodeBatch, beams: int, length: int) -> Tensor:
        return self.state.ancestry[members.slots, :beams, :length]


class TightSteps:
    """Steps of just the beams that are there."""

    def __init__(self, stage: Stage, kernel: Kernel) -> None:
        self._stage, self._kernel = stage, kernel
        self._members: DecodeBatch | None = None
        self._seats: list[tuple[Slot, int]] = []

    def run(self, sequences: Sequence[StepSequence]) -> None:
        shape = shape_of(sequences, self._stage.state.places)
        seats = seats_of(sequences)
        if self._members is None or seats != self._seats:  # somebody came or went
            self._members, self._seats = tight_members(sequences), seats
        self._stage.tight_step(self._members, shape, self._kernel)


class DenseSteps:
    """Steps over the first slots and rows, as many as reach the last one in use."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def run(self, sequences: Sequence[StepSequence]) -> None:
        shape = shape_of(sequences, self._stage.state.places)
        slots, rows = extent_of(sequences)
        members = dense_members(sequences, slots, rows, shape.beams)
        self._stage.dense_step(members.to(self._stage.state.device), shape)


def shape_of(sequences: Sequence[StepSequence], most: int) -> StepShape:
    """The smallest sizes in which these requests can take their next step, sequences of `most` places."""
    beams = [len(sequence.slot.rows) for sequence in sequences]
    return StepShape(
        beams=max(beams),
        # The token read, and the one chosen; one that has filled its room and runs along chooses none.
        length=min(max(sequence.steps for sequence in sequences) + 2, most),
        greedy=min(beams) == 1,
        encoder_length=max(sequence.encoder_length for sequence in sequences),
    )


def seats_of(sequences: Sequence[StepSequence]) -> list[tuple[Slot, int]]:
    """All that `DecodeBatch` depend on: places, and the encoder lengths of those who have them now."""
    return [(sequence.slot, sequence.encoder_length) for sequence in sequences]


def extent_of(sequences: Sequence[StepSequence]) -> tuple[int, int]:
    """How many slots and rows from the first on hold all these requests."""
    slots = max(sequence.slot.index for sequence in sequences)
    rows = max(max(sequence.slot.rows) for sequence in sequences)
    return slots + 1, rows + 1


def tight_members(sequences: Sequence[StepSequence]) -> DecodeBatch:
    """Just these requests, the beams of each one after another."""
    beams = [len(sequence.slot.rows) for sequence in sequences]
    rows_of, first = [], 0
    for count in beams:
        rows_of.append([first + beam for beam in range(count)] + [0] * (max(beams) - count))
        first += count
    return make_members(
        slots=[sequence.slot.index for sequence in sequences],
        rows=[row for sequence in sequences for row in sequence.slot.rows],
        owners=[(index, beam) for index, count in enumerate(beams) for beam in range(count)],
        rows_of=rows_of,
        beams=beams,
        encoder_lengths=[sequence.encoder_length for sequence in sequences],
    )


def dense_members(sequences: Sequence[StepSequence], slots: int, rows: int, beams: int) -> DecodeBatch:
    """The first `slots` and `rows` of the caches; those that nobody has run along idly.

    An idle row does once more what the first request's first beam does, writes it to the same place of the
    caches, and is read by nobody. Nothing is written where nobody lies: what is no number would stay there.
    """
    first = sequences[0].slot
    owners, written = [(first.index, 0)] * rows, [first.rows[0]] * rows
    rows_of = [[0] * beams for _ in range(slots)]
    counts, lengths = [0] * slots, [1] * slots
    for sequence in sequences:
        slot, taken = sequence.slot.index, sequence.slot.rows
        counts[slot], lengths[slot] = len(taken), sequence.encoder_length
        rows_of[slot][: len(taken)] = taken
        for beam, row in enumerate(taken):
            owners[row], written[row] = (slot, beam), row
    return make_members(
        slots=list(range(slots)),
        rows=written,
        owners=owners,
        rows_of=rows_of,
        beams=counts,
        encoder_lengths=lengths,
    )


def make_members(
    *,
    slots: list[int],
    rows: list[int],
    owners: list[tuple[int, int]],
    rows_of: list[list[int]],
    beams: list[int],
    encoder_lengths: list[int],
) -> DecodeBatch:
    """Lists to tensors of the host; `owners` [rows]: the request and beam of each row."""

    def tensor(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    counts = tensor(beams)
    return DecodeBatch(
        slots=tensor(slots),
        rows=tensor(rows),
        request_of=tensor([request for request, _ in owners]),
        beam_of=tensor([beam for _, beam in owners]),
        rows_of=tensor(rows_of),
        is_beam=torch.arange(len(rows_of[0])) < counts[:, None],
        beams=counts,
        encoder_lengths=tensor(encoder_lengths),
    )
