"""Compare searches: slots that a step must not change, and the observable state of two searches that must
agree."""

from __future__ import annotations

import torch
from torch import Tensor

from florence.engine.device.beams.search_state import FAULTY, SearchState

WRITTEN = (
    *("sequences", "suffix_matches", "logprobs", "beam_indirection", "totals", "generated", "status"),
    *("finished_sequences", "finished_logprobs", "finished_indirection"),
    *(f"finished_{name}" for name in ("lengths", "order", "count", "scores")),
)


def unchanged(state: SearchState, before: SearchState, slot: int) -> None:
    """Check that a step has written nothing to this slot."""
    for name in WRITTEN:
        assert torch.equal(getattr(state, name)[slot], getattr(before, name)[slot]), name


def same(made: SearchState, expected: SearchState, slot: int) -> None:
    """Check that the observable states of both searches agree in this slot."""
    assert made.status[slot] == expected.status[slot]
    if made.status[slot] == FAULTY:
        return
    assert made.last_token[slot] == expected.last_token[slot]
    assert made.generated[slot] == expected.generated[slot]
    stop, beams = int(made.generated[slot]) + 1, int(made.beams[slot])
    torch.testing.assert_close(made.totals[slot, :beams], expected.totals[slot, :beams], rtol=1e-5, atol=1e-5)
    kept, kept_by_definition = windows_of(made, slot), windows_of(expected, slot)
    torch.testing.assert_close(kept, kept_by_definition, rtol=1e-4, atol=1e-5)
    open_beams = expected.totals[slot, :beams] > -1e8  # the others may come in any order
    for name in ("sequences", "suffix_matches", "beam_indirection", "logprobs"):
        first = 1 if name == "beam_indirection" else 0  # all beams begin with the same row
        now, then = (getattr(state, name)[slot, :beams, first:stop][open_beams] for state in (made, expected))
        torch.testing.assert_close(now, then, rtol=1e-5, atol=1e-5)
    assert made.finished_count[slot] == expected.finished_count[slot]
    for index in range(int(made.finished_count[slot])):
        if expected.finished_scores[slot, index] < -1e8:
            continue
        length = int(expected.finished_lengths[slot, index])
        assert made.finished_lengths[slot, index] == length
        assert made.finished_order[slot, index] == expected.finished_order[slot, index]
        for name in ("finished_sequences", "finished_logprobs"):
            now, then = (getattr(state, name)[slot, index, : length + 1] for state in (made, expected))
            torch.testing.assert_close(now, then, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        made.finished_scores[slot], expected.finished_scores[slot], rtol=1e-5, atol=1e-5
    )


def windows_of(state: SearchState, slot: int) -> Tensor:
    """The window sums along each open beam, and along each possible hypothesis."""
    assert state.window_sums is not None
    stop, beams = int(state.generated[slot]) + 1, int(state.beams[slot])
    is_open = state.totals[slot, :beams] > -1e8
    paths = [
        (
            state.beam_indirection[slot, :beams, 1:stop][is_open],
            state.sequences[slot, :beams, 1:stop][is_open],
        )
    ]
    for index in range(int(state.finished_count[slot])):
        if state.finished_scores[slot, index] > -1e8:
            last = int(state.finished_lengths[slot, index]) + 1
            rows, tokens = state.finished_indirection, state.finished_sequences
            paths.append((rows[slot, index, None, 1:last], tokens[slot, index, None, 1:last]))
    sums = []
    for rows, tokens in paths:
        found = state.windows[rows.long(), torch.arange(1, rows.shape[1] + 1)]
        sums.append((found * state.window_sums.contains(tokens)[..., None]).flatten())
    return torch.cat(sums)
