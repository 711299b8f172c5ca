"""Figures of answers, in parts that can be computed anew for pictures drawn with replacement.

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
"""How often each picture counts [pictures], whole numbers."""


class Metric(Protocol):
    """Some of the figures of a task."""

    def figures(self, repeats: Repeats) -> Figures:
        """Where each picture counts as often as they say; nan where nothing is to be measured."""
        ...


@dataclass(frozen=True)
class Share:
    """One figure that is a sum over a sum, such as a mean.

    pictures: of each item the number of its picture. tops: of each item, what is summed; wholes: what it is
    divided by.
    """

    name: str
    pictures: Sequence[int]
    tops: Sequence[float]
    wholes: Sequence[float]

    def figures(self, repeats: Repeats) -> Figures:
        counts = repeats[np.asarray(self.pictures, dtype=int)]
        whole = float(counts @ np.asarray(self.wholes, dtype=float))
        top = float(counts @ np.asarray(self.tops, dtype=float))
        return {self.name: top / whole if whole else math.nan}


def mean_of(name: str, pictures: Sequence[int], values: Sequence[float]) -> Share:
    """The mean over the items; nan of none."""
    return Share(name, pictures, values, [1.0] * len(values))


@dataclass(frozen=True)
class Evaluation:
    """What answers come to.

    parts: the figures. quality: of each row, 0 for the worst answer to 1 for the best. judged: what has a
    score, and whether it is right. notes: what a reader of the figures has to know.
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
        """All figures; each picture counts once unless they say otherwise."""
        repeats = np.ones(self.pictures, dtype=int) if repeats is None else repeats
        return {name: value for part in self.parts for name, value in part.figures(repeats).items()}


def judge(scores: Iterable[float | None], right: Iterable[bool | None]) -> list[Judged]:
    """Those that have a score, and are right or wrong."""
    pairs = zip(scores, right, strict=True)
    return [Judged(score, ok) for score, ok in pairs if score is not None and ok is not None]
