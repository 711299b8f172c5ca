"""Compares two sets of answers to the same questions: the difference of each figure, with a bootstrap
interval.

Both are measured on the same pictures, drawn with replacement (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993; paired as in Koehn, Statistical Significance Tests for Machine Translation Evaluation, 2004).
Knows nothing about tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from florence.evaluation.measures.figures import Evaluation

LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of A and of B, and the ends (`low`, `high`) of the interval of B - A; nan where it can't be
    measured."""

    name: str
    a: float
    b: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


def compare(a: Evaluation, b: Evaluation, *, resamples: int) -> list[Difference]:
    """The difference of each figure between two evaluations of the same questions in the same order.

    `resamples`: number of bootstrap samples.
    """
    rng, count = np.random.default_rng(0), a.pictures
    first, second = a.figures(), b.figures()
    changes = np.full((resamples, len(first)), np.nan)
    for number in range(resamples):
        repeats = rng.multinomial(count, np.full(count, 1 / count))
        one, two = a.figures(repeats), b.figures(repeats)
        changes[number] = [two[name] - one[name] for name in first]
    tail = (1 - LEVEL) / 2
    return [
        Difference(name, value, second[name], *_interval(changes[:, column], tail))
        for column, (name, value) in enumerate(first.items())
    ]


def _interval(changes: NDArray[Any], tail: float) -> tuple[float, float]:
    known = changes[~np.isnan(changes)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
