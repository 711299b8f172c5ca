"""Sampling of the next token, and the repetition penalty.

A token is drawn by the Gumbel-max trick: noise is added to the processed scores, and the highest sum wins.
The noise is a function of the request's seed, the token's position and the token alone, by the counter-based
generator Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). So a request
gets the same tokens in any slot, in any batch, on a CPU and in a CUDA graph. Knows scores and tokens; the
search decides where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling options of the request in each slot, all [slots]; int64, and float64 from `temperature`
    on.

    `samples`: whether the request samples, 0 or 1. `tail`: 1 - top_p, the probability that is left out.
    """

    samples: Tensor
    seed: Tensor
    top_k: Tensor
    temperature: Tensor
    penalty: Tensor
    tail: Tensor

    def draw(self, scores: Tensor, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each of `slots` [n], and its log-probability among the tokens that were left to sample
        from; [n] each.

        `scores` [n, vocab]: after the search's rules. `positions` [n]: tokens generated before.
        """
        temperature, tail = self.temperature[slots].float(), self.tail[slots].float()
        warped = warp(scores, temperature, self.top_k[slots], tail)
        noise = gumbel(self.seed[slots], positions, scores.shape[-1])
        tokens = (warped + noise).argmax(-1)
        return tokens, warped.gather(1, tokens[:, None])[:, 0] - warped.logsumexp(-1)


def penalize(scores: Tensor, seen: Tensor, penalties: Tensor, offsets: Tensor) -> None:
    """Divide the scores above 0 of the tokens that have been `seen` by the penalty, and multiply those below
    by it (Keskar et al., "CTRL", 2019), as transformers' `RepetitionPenaltyLogitsProcessor` does; in place.

    `scores` [r, vocab], `seen` [r, any]; `penalties` [r], 1 for none; `offsets` [r]: subtracted from the
    scores before their sign is looked at.
    """
    old = scores.gather(1, seen)
    shifted, penalties = old - offsets[:, None], penalties[:, None]
    new = torch.where(shifted < 0, shifted * penalties, shifted / penalties) + offsets[:, None]
    scores.scatter_(1, seen, torch.where(penalties == 1, old, new))


def warp(scores: Tensor, temperature: Tensor, top_k: Tensor, tail: Tensor) -> Tensor:
    """Scores [n, vocab] divided by the temperature, with -inf for all tokens but the `top_k` likeliest (0:
    all), and for the least likely of these that have at most `tail` of the probability together.

    Equals transformers' warpers for temperature, top_k and top_p in this order, with one sort.
    """
    vocab = scores.shape[-1]
    scores = scores / temperature[:, None]
    ordered, tokens = scores.sort(dim=-1, stable=True)
    first = torch.where(top_k > 0, vocab - top_k, 0).clamp(min=0)[:, None]
    lowest = ordered.gather(1, first)  # equal scores stay together
    ordered = ordered.masked_fill(ordered < lowest, -torch.inf)
    dropped = (ordered.softmax(-1).cumsum(-1) <= tail[:, None]) & (tail > 0)[:, None]
    dropped[:, -1].fill_(False)  # `fill_`, since a graph can't capture a copy from the host
    dropped |= ordered == -torch.inf
    return scores.masked_fill(torch.zeros_like(dropped).scatter(1, tokens, dropped), -torch.inf)


def gumbel(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Noise of the Gumbel distribution, float64 [n, vocab], for int64 `seeds` and `positions` [n]."""
    blocks = torch.arange((vocab + 3) // 4, device=seeds.device).expand(len(seeds), -1)  # 4 tokens each
    zeros = torch.zeros_like(blocks)
    counter = blocks, positions[:, None].expand_as(blocks), zeros, zeros
    words = philox(counter, (seeds[:, None] & _WORD, (seeds[:, None] >> 32) & _WORD))
    uniform = (torch.stack(words, dim=-1).flatten(1)[:, :vocab].double() + 0.5) / 2**32  # in (0, 1)
    return -torch.log(-torch.log(uniform))


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for each counter of four, by a key of two: 32 bits each, in int64."""
    a, b, c, d = counter
    low, high = key
    for _ in range(_ROUNDS):
        # The products wrap around at 64 bits; the mask removes the copies of the sign bit that the shift
        # makes.
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((right >> 32) & _WORD) ^ b ^ low,
            right & _WORD,
            ((left >> 32) & _WORD) ^ d ^ high,
            left & _WORD,
        )
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return a, b, c, d
