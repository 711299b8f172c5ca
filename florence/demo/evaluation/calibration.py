"""Whether scores can be taken for probabilities: of the answers scored about 0.8, are about 80% right?

Answers are put into groups of equal size from the lowest score to the highest: the scores of a task may all
lie close together, and groups of equal width would say nothing about them. Knows nothing about tasks: it is
given scores and whether each answer was right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from florence.demo.evaluation.metrics import mean

GROUPS: Final = 10


@dataclass(frozen=True, slots=True)
class Judged:
    """One scored thing of an answer, or a whole text, and whether it is right."""

    score: float
    right: bool


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One group: how many, their mean score, the share that is right."""

    count: int
    score: float
    right: float


def reliability(judged: Sequence[Judged]) -> list[CalibrationRow]:
    """The groups, lowest scores first; as many as there are things where these are few."""
    ranked = sorted(judged, key=lambda one: one.score)
    cuts = [len(ranked) * number // GROUPS for number in range(GROUPS + 1)]
    return [
        CalibrationRow(stop - start, mean([one.score for one in part]), mean([one.right for one in part]))
        for start, stop in itertools.pairwise(cuts)
        if (part := ranked[start:stop])
    ]


def expected_calibration_error(judged: Sequence[Judged]) -> float:
    """Mean distance between a group's score and its share of right ones; nan of nothing."""
    if not judged:
        return math.nan
    return sum(row.count * abs(row.score - row.right) for row in reliability(judged)) / len(judged)
