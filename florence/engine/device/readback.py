"""Copies what a step decided from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.beams.search_state import SearchState
from florence.engine.device.beams.window_sums import WindowSums
from florence.engine.device.memory import DeviceMemory, Download
from florence.engine.sequence import SequenceState
from florence.types.bounds import Sums


class StepReadback:
    """The status and the first beam's token of every slot after a step of `sequences`; on demand also the
    best hypotheses of ended requests. Copies start at once; the methods that return values wait for them.
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
        positions, ordered = self._state.max_positions, self._state.window_sums
        rows = zip(self._ended, self._best(), strict=True)
        return [(sequence, _hypothesis(row, positions, ordered)) for sequence, row in rows]


def best_of(state: SearchState, slots: Tensor) -> Tensor:
    """The best finished hypothesis of each of `slots` int64 [n] whose search is done; of equal scores the
    last one kept. float64 [n, 2 + (2 + w) * max_positions], which represents all values exactly: score,
    length, tokens, log-probabilities, window sums of w widths."""
    scores = state.finished_scores[slots]  # [n, b]
    kept = torch.arange(scores.shape[1], device=scores.device) < state.finished_count[slots, None]
    highest = torch.where(kept, scores, -torch.inf).amax(-1, keepdim=True)
    best = torch.where(kept & (scores == highest), state.finished_order[slots], -1).argmax(-1)
    rows = state.finished_indirection[slots, best]  # [n, positions]
    positions = torch.arange(state.max_positions, device=slots.device)
    columns = (
        scores.gather(1, best[:, None]),
        state.finished_lengths[slots, best][:, None],
        state.finished_sequences[slots, best],
        state.finished_logprobs[slots, best],
        state.windows[rows, positions].flatten(1),
    )
    return torch.cat([column.double() for column in columns], dim=1)


def _hypothesis(row: Tensor, positions: int, ordered: WindowSums | None) -> Hypothesis:
    """The hypothesis in one row of `best_of`."""
    stop = int(row[1]) + 1
    tokens, logprobs, windows = row[2:].tensor_split((positions, 2 * positions))
    tokens = tokens[:stop].long()
    return Hypothesis(
        token_ids=tokens.tolist(),
        token_logprobs=logprobs[1:stop].tolist(),
        score=float(row[0]),
        token_windows=[] if ordered is None else _windows(windows.view(positions, -1), tokens, ordered),
    )


def _windows(windows: Tensor, tokens: Tensor, ordered: WindowSums) -> list[Sums]:
    """The window sums of the generated tokens; zeros for tokens that are not ordered, for which a step keeps
    none."""
    kept = torch.where(ordered.contains(tokens)[:, None], windows[: len(tokens)], 0.0)
    return [tuple(sums) for sums in kept[1:].tolist()]
