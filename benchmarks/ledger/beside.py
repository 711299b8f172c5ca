"""Estimated slowdown of an encode and decode steps that run concurrently on one card.

A kernel needs a share of the card's bandwidth and of its products; two that together need more than all take
proportionally longer. Kernels of both sides meet at random. Knows costs; knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ledger.costs import SHARED, Card
from ledger.counting import Ledger


def slowdown(card: Card, one: Ledger, other: Ledger) -> float:
    """The factor by which both are slower while they run concurrently.

    This is the mean over all pairs of their kernels, of the larger of the audit's guess and the load of the
    most used resource.
    """
    mine, its = _needs(card, one), _needs(card, other)
    pairs = np.maximum(
        1 + SHARED,
        np.maximum(mine.memory[:, None] + its.memory, mine.products[:, None] + its.products),
    )
    return float(mine.weights @ pairs @ its.weights)


@dataclass(frozen=True)
class _Needs:
    """For each operation its part of the time, and the shares of the card's bandwidth and product rate that
    it uses meanwhile; each [operations]."""

    weights: NDArray[np.float64]
    memory: NDArray[np.float64]
    products: NDArray[np.float64]


def _needs(card: Card, ledger: Ledger) -> _Needs:
    """The needs of a ledger's operations on a card."""
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
