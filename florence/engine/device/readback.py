"""What steps decided, on its way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from florence.engine.device.reference import Hypothesis
from florence.engine.device.search import SearchState
from florence.engine.sequence import SequenceState
from florence.model.devices import pinned


class Reading:
    """Each slot's status and first beam's token after a step of `sequences`, and the hypotheses of those that
    were found to have ended since. The host waits for the device when it asks for them: once, for all.
    """

    def __init__(self, state: SearchState, sequences: Sequence[SequenceState]) -> None:
        self.sequences = list(sequences)
        self._state = state
        on_gpu = state.decided.is_cuda
        self._event = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self._decided = self._send(state.decided)
        self._ended: list[SequenceState] = []
        self._best: Tensor | None = None

    def bring(self, ended: Sequence[SequenceState]) -> None:
        """Let the best hypotheses of these come too, whose places nobody gets before. To be said once."""
        if ended:
            slots = torch.tensor([sequence.slot.index for sequence in ended])
            device = self._state.device
            best = best_of(self._state, pinned(slots, device).to(device, non_blocking=True))
            self._ended, self._best = list(ended), self._send(best)

    def decided(self) -> tuple[list[int], list[int]]:
        """Statuses and tokens of all slots, once they have come."""
        self._wait()
        statuses, tokens = self._decided.tolist()
        return statuses, tokens

    def hypotheses(self) -> list[tuple[SequenceState, Hypothesis]]:
        """What those who had ended have found, once it has come."""
        if self._best is None:
            return []
        self._wait()
        return [
            (sequence, _hypothesis(found))
            for sequence, found in zip(self._ended, self._best.tolist(), strict=True)
        ]

    def _send(self, values: Tensor) -> Tensor:
        """Where these values will lie on the host, when all that was sent has come."""
        if self._event is None:
            return values.clone()
        sent = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)  # PyTorch uses it again
        sent.copy_(values, non_blocking=True)
        self._event.record()
        return sent

    def _wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()


def best_of(state: SearchState, slots: Tensor) -> Tensor:
    """The best finished hypotheses of `slots` int64 [n] that are done, of equal scores the last one kept:
    float64 [n, 2 + 2 * (room + 1)], score, length, tokens and log-probabilities, which it holds exactly."""
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


def _hypothesis(found: list[float]) -> Hypothesis:
    """A row of `best_of`."""
    score, length, places = found[0], int(found[1]), (len(found) - 2) // 2
    tokens, logprobs = found[2 : 2 + places], found[2 + places :]
    return Hypothesis(
        token_ids=[int(token) for token in tokens[: length + 1]],
        token_logprobs=logprobs[1 : length + 1],
        score=score,
    )
