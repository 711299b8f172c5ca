"""Window sums of a whole step equal the plain definition; only ordered tokens have any."""

from __future__ import annotations

import pytest
import torch

from florence.engine.device.beams.window_sums import WindowSums, window_sums
from florence.types.bounds import WINDOWS

VOCAB, ROWS = 300, 6
ORDERED = range(40, 240)


@pytest.mark.parametrize("seed", range(10))
def test_sums_of_a_step_are_those_of_each_token_alone(seed: int) -> None:
    """A step's sums equal those of each token alone.

    Logits are random and partly forbidden; tokens lie inside, at the edges of and outside the ordered range,
    several in one row.
    """
    dice = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, VOCAB, generator=dice) * 4
    normalizer = logits.logsumexp(-1)  # like beam search, before the rules
    logits[torch.rand(ROWS, VOCAB, generator=dice) < 0.05] = -torch.inf
    rows = torch.randint(0, ROWS, (3, 8), generator=dice)
    tokens = torch.randint(0, VOCAB, (3, 8), generator=dice)
    tokens[0, :4] = torch.tensor([ORDERED.start - 1, ORDERED.start, ORDERED.stop - 1, ORDERED.stop])
    sums = WindowSums(ORDERED, torch.device("cpu"))(logits, normalizer, rows, tokens)  # [3, 8, widths]
    logprobs = logits - normalizer[:, None]
    for place in torch.cartesian_prod(torch.arange(3), torch.arange(8)).tolist():
        row, token = int(rows[*place]), int(tokens[*place])
        expected = window_sums(logprobs[row], token, ORDERED)
        assert sums[*place].tolist() == pytest.approx(expected, abs=1e-5)
        assert any(expected) or token not in ORDERED or bool(logits[row, token].isinf())


def test_the_whole_range_sums_to_what_the_ordered_tokens_have() -> None:
    """A window beyond both ends sums each ordered token exactly once."""
    short = range(10, 10 + WINDOWS[-1])
    logprobs = torch.randn(VOCAB).log_softmax(-1)
    whole = float(logprobs[short.start : short.stop].exp().sum())
    assert window_sums(logprobs, 70, short)[-1] == pytest.approx(whole, abs=1e-6)
    assert window_sums(logprobs, 9, short) == (0.0,) * len(WINDOWS)
