"""A decode step: makes tensors of the requests in it, and runs the step.

Three layouts, which compute the same. `RaggedSteps` holds only the rows in use, for attention that reads only
what a request has written (a CPU with the project's kernel). `DenseSteps` runs over the first slots and rows
of the caches, masked; `bucket_steps.py` does so with all sizes rounded up, so that graphs can be captured.
There, kernels that read lengths from memory get a `grouped_batch`: only the requests in use, each with the
same number of rows. Everything stays on the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from florence.engine.device.beams.search import SearchStep
from florence.engine.device.beams.search_state import SearchState, StepShape
from florence.engine.device.memory import DeviceMemory
from florence.engine.sequence import StepSequence
from florence.engine.slots import Slot
from florence.model.attention import AttentionBackend, DecodeBatch, StepInputs
from florence.model.caches import Caches
from florence.model.decode import decode_step
from florence.model.florence2 import Florence2Model

Occupancy = list[tuple[Slot, int, int]]
"""For each request its slot, encoder length and adapter slot: all that a `DecodeBatch` depends on."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """All that a step works with, on one device."""

    model: Florence2Model
    caches: Caches
    state: SearchState
    attention: AttentionBackend
    search: SearchStep

    def step(self, batch: DecodeBatch, shape: StepShape) -> None:
        """Run the decoder for one token of every row, and let the searches choose the next ones."""
        tokens, positions = self.state.tokens(batch)
        length = min(shape.length, self.caches.sizes.decoder_room)
        indirection = self.state.beam_indirection[batch.slots, : shape.beams, :length]
        inputs = StepInputs(self.caches, batch, indirection, positions, shape.encoder_length)
        with self.model.with_adapters(batch.adapters):
            logits = decode_step(self.model.language, tokens, self.attention.begin(inputs))
        self.search(self.state, batch, shape, logits)


class Steps(ABC):
    """Takes steps in one layout; the results are in the `SearchState`."""

    def __init__(self, context: StepContext, memory: DeviceMemory) -> None:
        self._context, self._memory = context, memory

    @abstractmethod
    def run(self, sequences: Sequence[StepSequence]) -> None:
        """One step for these requests."""


class RaggedSteps(Steps):
    """Steps of only the rows in use."""

    _latest: tuple[Occupancy, DecodeBatch] | None = None

    def run(self, sequences: Sequence[StepSequence]) -> None:
        sequences = sorted(sequences, key=lambda each: each.adapter)  # rows with the same one are adjacent
        occupancy = occupancy_of(sequences)
        if self._latest is None or self._latest[0] != occupancy:
            self._latest = occupancy, ragged_batch(sequences).map(self._memory.upload)
        self._context.step(self._latest[1], shape_of(sequences, self._context.state.max_positions))


class DenseSteps(Steps):
    """Steps over the first slots and rows, up to the last one in use."""

    def run(self, sequences: Sequence[StepSequence]) -> None:
        shape = shape_of(sequences, self._context.state.max_positions)
        slots, rows = extent_of(sequences)
        batch = dense_batch(sequences, slots, rows, shape.beams)
        self._context.step(batch.map(self._memory.upload), shape)


def shape_of(sequences: Sequence[StepSequence], max_positions: int) -> StepShape:
    """The smallest sizes in which these requests can take their next step, for sequences of up to
    `max_positions`."""
    beams = [len(sequence.slot.rows) for sequence in sequences]
    return StepShape(
        beams=max(beams),
        # Room for the token read and the one chosen; a finished request in its extra step may have none for
        # the latter.
        length=min(max(sequence.steps for sequence in sequences) + 2, max_positions),
        greedy=min(beams) == 1,
        encoder_length=max(sequence.encoder_length for sequence in sequences),
        sampled=any(sequence.sampled for sequence in sequences),
        penalized=any(sequence.penalized for sequence in sequences),
    )


def occupancy_of(sequences: Sequence[StepSequence]) -> Occupancy:
    """What the batch of these requests depends on: equal ones have equal batches."""
    return [(sequence.slot, sequence.encoder_length, sequence.adapter) for sequence in sequences]


def extent_of(sequences: Sequence[StepSequence]) -> tuple[int, int]:
    """The smallest numbers of first slots and first rows that contain all these requests."""
    slots = max(sequence.slot.index for sequence in sequences)
    rows = max(max(sequence.slot.rows) for sequence in sequences)
    return slots + 1, rows + 1


def ragged_batch(sequences: Sequence[StepSequence]) -> DecodeBatch:
    """A batch of only these requests, the beams of each one adjacent."""
    beams = [len(sequence.slot.rows) for sequence in sequences]
    rows_of, first = [], 0
    for count in beams:
        rows_of.append([first + beam for beam in range(count)] + [0] * (max(beams) - count))
        first += count
    return _make_batch(
        slots=[sequence.slot.index for sequence in sequences],
        rows=[row for sequence in sequences for row in sequence.slot.rows],
        owners=[(index, beam) for index, count in enumerate(beams) for beam in range(count)],
        rows_of=rows_of,
        beams=beams,
        encoder_lengths=[sequence.encoder_length for sequence in sequences],
        adapters=[sequence.adapter for sequence in sequences for _ in sequence.slot.rows],
    )


def dense_batch(sequences: Sequence[StepSequence], slots: int, rows: int, beams: int) -> DecodeBatch:
    """A batch of the first `slots` and `rows` of the caches; those not in use are padding.

    A padding row repeats the first request's first beam and writes the same values to the same cache row.
    Nothing is ever written to a free cache row, so no NaN is left there. A padding slot has no beams.
    """
    first = sequences[0].slot
    owners, written = [(first.index, 0)] * rows, [first.rows[0]] * rows
    adapters = [sequences[0].adapter] * rows
    rows_of = [[0] * beams for _ in range(slots)]
    counts, lengths = [0] * slots, [1] * slots
    for sequence in sequences:
        slot, taken = sequence.slot.index, sequence.slot.rows
        counts[slot], lengths[slot] = len(taken), sequence.encoder_length
        rows_of[slot][: len(taken)] = taken
        for beam, row in enumerate(taken):
            owners[row], written[row], adapters[row] = (slot, beam), row, sequence.adapter
    return _make_batch(
        slots=list(range(slots)),
        rows=written,
        owners=owners,
        rows_of=rows_of,
        beams=counts,
        encoder_lengths=lengths,
        adapters=adapters,
    )


def grouped_batch(sequences: Sequence[StepSequence], requests: int, beams: int) -> DecodeBatch:
    """A batch of these requests, each with `beams` rows, and padding up to `requests`.

    An absent beam or request repeats a row that is in use; from `beams` the kernels know to write nothing
    there.
    """
    taken, adapters = [sequence.slot for sequence in sequences], [each.adapter for each in sequences]
    padding = requests - len(taken)
    places = [[*slot.rows, *slot.rows[:1] * (beams - len(slot.rows))] for slot in taken]
    places += [[taken[0].rows[0]] * beams] * padding
    return _make_batch(
        slots=[slot.index for slot in taken] + [taken[0].index] * padding,
        rows=[row for rows in places for row in rows],
        owners=[(request, beam) for request in range(requests) for beam in range(beams)],
        rows_of=[list(range(request * beams, (request + 1) * beams)) for request in range(requests)],
        beams=[len(slot.rows) for slot in taken] + [0] * padding,
        encoder_lengths=[sequence.encoder_length for sequence in sequences] + [1] * padding,
        adapters=[adapter for adapter in adapters + [0] * padding for _ in range(beams)],
    )


def _make_batch(
    *,
    slots: list[int],
    rows: list[int],
    owners: list[tuple[int, int]],
    rows_of: list[list[int]],
    beams: list[int],
    encoder_lengths: list[int],
    adapters: list[int],
) -> DecodeBatch:
    """Make the host tensors of a batch from lists; `owners` [rows]: the request and beam of each row."""

    def tensor(values: list[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    counts = tensor(beams, torch.int32)
    return DecodeBatch(
        slots=tensor(slots),
        rows=tensor(rows),
        request_of=tensor([request for request, _ in owners]),
        beam_of=tensor([beam for _, beam in owners]),
        rows_of=tensor(rows_of),
        is_beam=torch.arange(len(rows_of[0])) < counts[:, None],
        beams=counts,
        encoder_lengths=tensor(encoder_lengths, torch.int32),
        adapters=tensor(adapters),
    )
