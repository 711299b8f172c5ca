"""Figures of answers, in parts that can be computed again for bootstrap samples of the pictures.

Knows nothing about tasks or how an answer is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from florence.evaluation.files.examples import Answered, picture_numbers
from florence.evaluation.measures.calibration import Judged

Figures = dict[str, float]
Repeats = NDArray[Any]
"""How often each picture counts, integers [pictures]."""


class Metric(Protocol):
    """Computes some of a task's figures."""

    def figures(self, repeats: Repeats) -> Figures:
        """The figures if each picture counts `repeats` times; nan where there is nothing to measure."""
        ...


@dataclass(frozen=True)
class Share:
    """A figure that is a ratio of sums, such as a mean.

    `pictures`: index of each item's picture. `numerators`, `denominators`: each item's part of the two sums.
    """

    name: str
    pictures: Sequence[int]
    numerators: Sequence[float]
    denominators: Sequence[float]

    def figures(self, repeats: Repeats) -> Figures:
        counts = repeats[np.asarray(self.pictures, dtype=int)]
        denominator = float(counts @ np.asarray(self.denominators, dtype=float))
        numerator = float(counts @ np.asarray(self.numerators, dtype=float))
        return {self.name: numerator / denominator if denominator else math.nan}


def mean_of(name: str, pictures: Sequence[int], values: Sequence[float]) -> Share:
    """The mean over the items; nan without items."""
    return Share(name, pictures, values, [1.0] * len(values))


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    `parts`: compute the figures. `quality`: of each row, from 0 for the worst answer to 1 for the best.
    `judged`: scored items, and whether they are right. `notes`: facts that a reader of the figures must know.
    """

    rows: Sequence[Answered]
    parts: Sequence[Metric]
    quality: Sequence[float]
    judged: Sequence[Judged] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return len(set(picture_numbers(self.rows)))

    def figures(self, repeats: Repeats | None = None) -> Figures:
        """All figures. `repeats` None: each picture counts once."""
        repeats = np.ones(self.pictures, dtype=int) if repeats is None else repeats
        return {name: value for part in self.parts for name, value in part.figures(repeats).items()}


def judge(scores: Iterable[float | None], right: Iterable[bool | None]) -> list[Judged]:
    """The items that have a score and are known to be right or wrong."""
    pairs = zip(scores, right, strict=True)
    return [Judged(score, ok) for score, ok in pairs if score is not None and ok is not None]
