"""How much probability lies near a chosen token, among tokens whose neighbouring ids mean nearly the same.

`window_sums` is the definition, one token at a time; `WindowSums` computes the same for a whole step, without
reading a value on the host. Knows ids and probabilities; knows nothing about what the tokens mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florence.types.bounds import WINDOWS, Sums


def window_sums(logprobs: Tensor, token: int, ordered: range) -> Sums:
    """For each width w of `WINDOWS`, the probability of the `ordered` tokens from `token` - w to `token` + w;
    zeros for a token that is not one of them.

    `logprobs` [vocab]: those of the search, with -inf for tokens that its rules forbid.
    """
    if token not in ordered:
        return (0.0,) * len(WINDOWS)
    first, last = ordered.start, ordered.stop - 1
    near = [slice(max(token - width, first), min(token + width, last) + 1) for width in WINDOWS]
    return tuple(float(logprobs[ids].exp().sum()) for ids in near)


class WindowSums:
    """The window sums of a whole step; r: rows, w: `widths`, c: `ordered` tokens."""

    def __init__(self, ordered: range, device: torch.device) -> None:
        self.ordered = ordered
        self.widths = torch.tensor(WINDOWS, device=device)

    def contains(self, tokens: Tensor) -> Tensor:
        """Whether each token is one of the ordered ones."""
        return (tokens >= self.ordered.start) & (tokens < self.ordered.stop)

    def __call__(self, logits: Tensor, normalizer: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """The sums of `tokens` [...] as float32 [..., w], each from the row `rows` [...] of `logits` [r,
        vocab]; log-probabilities are the logits less `normalizer` [r]."""
        first, count = self.ordered.start, len(self.ordered)
        probabilities = (logits[:, first : self.ordered.stop] - normalizer[:, None]).exp()  # [r, c]
        before = torch.nn.functional.pad(probabilities.cumsum(-1), (1, 0))  # [r, c + 1]
        places = (tokens - first).clamp(0, count - 1)[..., None]  # [..., 1]
        low, high = (places - self.widths).clamp(min=0), (places + self.widths + 1).clamp(max=count)
        rows = rows[..., None]
        return (before[rows, high] - before[rows, low]) * self.contains(tokens)[..., None]
