"""Measures how well scores are calibrated as probabilities, and fits a temperature that improves them.

Knows nothing about boxes or texts: it gets scores, and whether each item is right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from florence.evaluation.libraries import evaluator

GROUPS: Final = 10
MIN_TEMPERATURE: Final = 0.01
MAX_TEMPERATURE: Final = 100.0  # the largest value of FLORENCE_SCORE_TEMPERATURE
_EDGE: Final = 1e-9  # scores of 0 and 1 have no log-odds


@dataclass(frozen=True, slots=True)
class Judged:
    """One scored item of an answer, or a whole text, and whether it is right."""

    score: float
    right: bool


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One group of `reliability`: its size, the mean score, the share of right items."""

    count: int
    score: float
    right: float


@dataclass(frozen=True, slots=True)
class Temperature:
    """`value`: the best divisor of log-odds. `before`, `after`: calibration errors without and with a
    temperature; `after` uses temperatures fitted on other items (cross-validation)."""

    value: float
    before: float
    after: float


def area_under_curve(judged: Sequence[Judged]) -> float:
    """The area under the ROC curve, by torchmetrics: the probability that a right item has a higher score
    than a wrong one, ties counting half. nan unless there are both right and wrong items."""
    if len({one.right for one in judged}) < 2:
        return math.nan
    torch = evaluator("torch")
    scores = torch.tensor([one.score for one in judged], dtype=torch.float64)
    right = torch.tensor([int(one.right) for one in judged])
    return float(evaluator("torchmetrics.functional.classification").binary_auroc(scores, right))


def reliability(judged: Sequence[Judged]) -> list[CalibrationRow]:
    """`GROUPS` groups of equal size, lowest scores first; fewer where there are fewer items.

    Groups of equal width, as in torchmetrics, would say nothing about a task whose scores are close together.
    """
    ranked = sorted(judged, key=lambda one: one.score)
    cuts = [len(ranked) * number // GROUPS for number in range(GROUPS + 1)]
    return [
        CalibrationRow(
            len(part), sum(one.score for one in part) / len(part), sum(one.right for one in part) / len(part)
        )
        for start, stop in itertools.pairwise(cuts)
        if (part := ranked[start:stop])
    ]


def expected_calibration_error(judged: Sequence[Judged]) -> float:
    """Mean distance between a group's score and its share of right items; nan without items."""
    rows = reliability(judged)
    return sum(row.count * abs(row.score - row.right) for row in rows) / len(judged) if rows else math.nan


def fit_temperature(judged: Sequence[Judged]) -> Temperature | None:
    """The temperature with maximum likelihood (Guo et al., On Calibration of Modern Neural Networks, 2017).
    None unless each half of the items has both right and wrong ones."""
    halves = judged[0::2], judged[1::2]
    if any(len({one.right for one in half}) < 2 for half in halves):
        return None
    cooled = [
        Judged(_sigmoid(_odds(one.score) / temperature), one.right)
        for half, other in (halves, halves[::-1])
        for temperature in [_fitted(other)]
        for one in half
    ]
    before, after = (expected_calibration_error(items) for items in (judged, cooled))
    return Temperature(_fitted(judged), before, after)


def _fitted(judged: Sequence[Judged]) -> float:
    """By bisection: the slope of the log-likelihood falls as 1 / temperature grows."""
    odds = [_odds(one.score) for one in judged]
    low, high = math.log(1 / MAX_TEMPERATURE), math.log(1 / MIN_TEMPERATURE)
    for _ in range(50):
        middle = (low + high) / 2
        slope = sum(
            odd * (one.right - _sigmoid(math.exp(middle) * odd))
            for odd, one in zip(odds, judged, strict=True)
        )
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp(-low)


def _odds(score: float) -> float:
    score = min(max(score, _EDGE), 1 - _EDGE)
    return math.log(score / (1 - score))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
