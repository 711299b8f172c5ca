"""How much an encode and decode steps slow each other down beside each other on one card, reckoned.

A kernel needs a share of the card's bandwidth and a share of its products; two that need more together than
there is take as much longer. Kernels of both sides meet at random. Knows costs; knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ledger.costs import SHARED, Card
from ledger.counting import Ledger


def slowdown(card: Card, one: Ledger, other: Ledger) -> float:
    """How many times as long both take while they run beside each other: the mean over all pairs of their
    kernels, of the larger of the audit's guess and what the resource takes that both need most of."""
    mine, its = _needs(card, one), _needs(card, other)
    pairs = np.maximum(
        1 + SHARED,
        np.maximum(mine.memory[:, None] + its.memory, mine.products[:, None] + its.products),
    )
    return float(mine.weights @ pairs @ its.weights)


@dataclass(frozen=True)
class _Needs:
    """Of each operation: its part of the time, and the shares of the card's bandwidth and of its products'
    rate that it takes meanwhile; each [operations]."""

    weights: NDArray[np.float64]
    memory: NDArray[np.float64]
    products: NDArray[np.float64]


def _needs(card: Card, ledger: Ledger) -> _Needs:
    rows = [
        (
            card.seconds(each.kind, each.kernels, each.moved, each.worked),
            card.seconds(each.kind, 0, each.moved, 0.0),
            card.seconds(each.kind, 0, 0.0, each.worked),
        )
        for each in ledger.operations
    ]
    seconds, memory, products = np.array([row for row in rows if row[0] > 0]).T
    return _Needs(seconds / seconds.sum(), memory / seconds, products / seconds)
