"""The probability that a box, quad or polygon is right, estimated from the probabilities of its tokens.

A location is one of a thousand, and its neighbours are nearly as good: what counts is not the probability of
the generated location alone, but that of all acceptable ones. An overlap of one half allows a shift that
grows with the thing, so the window around each location is a share of the thing's width (for x) or height
(for y), and smaller for thin outlines. The probabilities within the windows are multiplied, to a power below
1 since the errors of one thing's locations are correlated; the same is done with the label's tokens. Shares
and powers were chosen on the demo checkpoint; `benchmarks/RESULTS.md` has the figures. Knows nothing about
text or pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from florence.export.geometry import signed_area
from florence.types.bounds import WINDOWS, Sums


@dataclass(frozen=True, slots=True)
class ScoreParameters:
    """`share`: a window's width to each side as a share of the thing's size; `power`: exponent of the product
    of the masses."""

    share: float
    power: float


BOX: Final = ScoreParameters(0.13, 0.25)
FINE: Final = ScoreParameters(0.03, 0.04)
"""A second, narrower window for boxes: little more than a tie-break among boxes that are all very likely
right; those with the most certain locations are the most accurate."""
OUTLINE: Final = ScoreParameters(0.26, 0.4)
"""For a quad or a polygon; the share is multiplied by its thickness."""


def masses_of_box(bins: Sequence[int], sums: Sequence[Sums]) -> list[float]:
    """The probability mass within the window of each of four locations x1, y1, x2, y2; a little less where
    much of it is outside the narrow window."""
    near, wide = _masses(bins, sums, FINE.share), _masses(bins, sums, BOX.share)
    return [outer * inner**FINE.power for inner, outer in zip(near, wide, strict=True)]


def masses_of_outline(bins: Sequence[int], sums: Sequence[Sums]) -> list[float]:
    """The same for the locations x, y, x, y, ... of a quad or a polygon."""
    return _masses(bins, sums, OUTLINE.share * thickness(bins))


def confidence(
    masses: Sequence[float], power: float, label_logprobs: Sequence[float], temperature: float
) -> float:
    """The score, 0 to 1. `temperature`: divides its log-odds (Guo et al., On Calibration of Modern Neural
    Networks, 2017); 1 does not change it."""
    score = math.prod(masses) ** power * math.exp(min(sum(label_logprobs), 0.0))
    if temperature == 1 or not 0 < score < 1:
        return score
    odds = math.log(score / (1 - score)) / temperature
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def thickness(bins: Sequence[int]) -> float:
    """An outline's thickness relative to its size: 4 area / perimeter, with its bounding box scaled to the
    unit square. 1 for a box, 0.5 for a five-pointed star, 0 for one that encloses nothing."""
    xs, ys = bins[0::2], bins[1::2]
    across, down = _extent(xs), _extent(ys)
    points = [(x / across, y / down) for x, y in zip(xs, ys, strict=True)]
    perimeter = sum(math.dist(start, stop) for start, stop in pairwise([*points, points[0]]))
    return min(4 * abs(signed_area(points)) / perimeter, 1.0) if perimeter else 0.0


def _extent(values: Sequence[int]) -> int:
    return max(1, max(values) - min(values))


def _masses(bins: Sequence[int], sums: Sequence[Sums], share: float) -> list[float]:
    widths = [share * _extent(bins[0::2]), share * _extent(bins[1::2])]
    return [_within(each, widths[index % 2]) for index, each in enumerate(sums)]


def _within(sums: Sums, width: float) -> float:
    """The probability within `width` locations: interpolated linearly between the widths at which it was
    summed."""
    place = bisect_left(WINDOWS, width)
    if place in (0, len(WINDOWS)):
        mass = sums[0 if place == 0 else -1]
    else:
        low, high = WINDOWS[place - 1], WINDOWS[place]
        mass = sums[place - 1] + (sums[place] - sums[place - 1]) * (width - low) / (high - low)
    return min(max(mass, 0.0), 1.0)  # rounding can push a sum a little above 1
