"""What a step decided, copied from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from florence.engine.device.memory import DeviceMemory, Download
from florence.engine.device.reference import Hypothesis
from florence.engine.device.search_state import SearchState
from florence.engine.sequence import SequenceState


class StepReadback:
    """The status and the first beam's token of every slot after a step of `sequences`; later also the best
    hypotheses of requests that were found to have ended. Copies start at once; the methods that return
    values wait for them.
    """

    def __init__(self, state: SearchState, memory: DeviceMemory, sequences: Sequence[SequenceState]) -> None:
        self.sequences = list(sequences)
        self._state, self._memory = state, memory
        self._decided = memory.download(state.decided)
        self._ended: list[SequenceState] = []
        self._best: Download | None = None

    def fetch_hypotheses(self, ended: Sequence[SequenceState]) -> None:
        """Start to copy the best hypotheses of `ended`. Their slots must stay allocated until `hypotheses`
        has returned them. Call it at most once."""
        if ended:
            slots = torch.tensor([sequence.slot.index for sequence in ended])
            best = best_of(self._state, self._memory.upload(slots))
            self._ended, self._best = list(ended), self._memory.download(best)

    def decided(self) -> tuple[list[int], list[int]]:
        """Statuses and tokens, both [slots]."""
        statuses, tokens = self._decided().tolist()
        return statuses, tokens

    def hypotheses(self) -> list[tuple[SequenceState, Hypothesis]]:
        """The hypotheses that `fetch_hypotheses` started to copy."""
        if self._best is None:
            return []
        rows = self._best().tolist()
        return [(sequence, _hypothesis(row)) for sequence, row in zip(self._ended, rows, strict=True)]


def best_of(state: SearchState, slots: Tensor) -> Tensor:
    """The best finished hypothesis of each of `slots` int64 [n] whose search is done; of equal scores the
    last one kept. float64 [n, 2 + 2 * max_positions], which represents all values exactly: score, length,
    tokens, log-probabilities."""
    scores = state.finished_scores[slots]  # [n, b]
    kept = torch.arange(scores.shape[1], device=scores.device) < state.finished_count[slots, None]
    highest = torch.where(kept, scores, -torch.inf).amax(-1, keepdim=True)
    best = torch.where(kept & (scores == highest), state.finished_order[slots], -1).argmax(-1)
    columns = (
        scores.gather(1, best[:, None]),
        state.finished_lengths[slots, best][:, None],
        state.finished_sequences[slots, best],
        state.finished_logprobs[slots, best],
    )
    return torch.cat([column.double() for column in columns], dim=1)


def _hypothesis(row: list[float]) -> Hypothesis:
    """From a row of `best_of`."""
    score, length, positions = row[0], int(row[1]), (len(row) - 2) // 2
    tokens, logprobs = row[2 : 2 + positions], row[2 + positions :]
    return Hypothesis(
        token_ids=[int(token) for token in tokens[: length + 1]],
        token_logprobs=logprobs[1 : length + 1],
        score=score,
    )
