"""Makes each line of the report: what is compared, and from which size on a difference is a fault.

Knows nothing about how either side answers.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from florence.verification.report import Line
from florence.verification.theirs import GeneratedTokens
from florence.verification.trials import Part
from florence.verification.verdict import TOLERANCE, Compared, Verdict, largest_difference

TOWER_TOLERANCE: Final = 1e-3
"""Largest accepted difference between two towers, in standard deviations of the features."""
PIXEL_TOLERANCE: Final = 1e-5
WORSE, SPARE = 2.0, 0.01
"""A dtype may change this package's log-probabilities by up to `WORSE` times as much as transformers', plus
`SPARE`."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Pictures a second of one side: one at a time, and all together."""

    alone: float
    together: float

    def __str__(self) -> str:
        return f"{self.alone:.2f} one by one, {self.together:.2f} together"


def prompt_line(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> Line:
    """The line about the prompts' token ids."""
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return Line(
        "prompts", same == len(ours), f"{same} of {len(ours)} with the ids of transformers' processor"
    )


def pixel_line(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Line:
    """The line about normalised pixels."""
    apart = _apart(ours, theirs)
    return Line(
        "pixels", apart <= PIXEL_TOLERANCE, f"differ by {apart:.1e} at most from transformers' processor's"
    )


def tower_lines(ours: Sequence[Tensor], native: Sequence[Tensor], timm: Sequence[Tensor]) -> Iterator[Line]:
    """The lines about the tower's features in three libraries. The two others must agree with each other
    first; otherwise the fault is in how they were loaded."""
    spread = min(float(features.std()) for features in timm)
    found = {"timm's DaViT": _apart(ours, timm), "transformers'": _apart(ours, native)}
    others = _apart(native, timm)
    for name, apart in found.items():
        text = f"differs by {apart:.1e}; the features' standard deviation is {spread:.1e}"
        yield Line(f"tower, {name}", apart <= TOWER_TOLERANCE * spread, text)
    if others > TOWER_TOLERANCE * spread:
        yield Line(
            "the other side",
            False,
            f"timm's tower and transformers' differ by {others:.1e}: nothing is proven",
        )


def answer_line(part: Part, compared: Sequence[Compared]) -> Line:
    """The line about token ids and log-probabilities of one part's trials."""
    verdicts = Counter(each.verdict for each in compared)
    same = sum(each.same_ids for each in compared)
    words = [f"{same} of {len(compared)} with identical token ids"]
    words += [
        f"{verdicts[verdict]} {verdict}"
        for verdict in (Verdict.KNOWN, Verdict.ROUNDING, Verdict.FAULT)
        if verdicts[verdict]
    ]
    largest = max(each.largest for each in compared)
    words.append(f"log-probabilities differ by {largest:.1e} at most")
    return Line(part.value, not verdicts[Verdict.FAULT], "; ".join(words))


def batch_line(together: Sequence[GeneratedTokens], alone: Sequence[GeneratedTokens], excused: int) -> Line:
    """The line about answers alone against answers in a batch. `excused`: answers that differ only because of
    rounding."""
    pairs = list(zip(together, alone, strict=True))
    same = [(one, other) for one, other in pairs if one.token_ids == other.token_ids]
    apart = max(
        (largest_difference(one.token_logprobs, other.token_logprobs) for one, other in same), default=0.0
    )
    found = f"{len(same)} of {len(pairs)} identical; log-probabilities differ by {apart:.1e} at most"
    return Line("alone, and in a batch", len(same) + excused == len(pairs) and apart <= TOLERANCE, found)


def dtype_line(
    dtype: str, exact: Sequence[GeneratedTokens], served: Sequence[GeneratedTokens], theirs: float | None
) -> Line:
    """The line about the served dtype against float32. `theirs`: mean change of transformers'
    log-probabilities by this dtype; None if transformers does not support it."""
    same = sum(one.token_ids == other.token_ids for one, other in zip(exact, served, strict=True))
    moved = mean_move(exact, served)
    words = [
        f"{same} of {len(exact)} with float32's token ids; log-probabilities move by {moved:.1e} on average"
    ]
    if theirs is not None:
        words.append(f"transformers' by {theirs:.1e}")
    ok = None if theirs is None else moved <= WORSE * theirs + SPARE
    return Line(f"{dtype} against float32", ok, ", ".join(words))


def mean_move(exact: Sequence[GeneratedTokens], other: Sequence[GeneratedTokens]) -> float:
    """The mean difference of log-probabilities over the common first tokens of two answers to each trial."""
    moves = [
        abs(first - second)
        for one, two in zip(exact, other, strict=True)
        for first, second in _common(one, two)
        if first != 0.0  # not forced
    ]
    return statistics.fmean(moves) if moves else 0.0


def rate_lines(dtype: str, ours: Rates, theirs: Rates | None, about: str) -> Iterator[Line]:
    """The lines about both sides' pictures a second."""
    yield Line(f"pictures/s, {dtype}", None, f"florence {ours}; {about}")
    if theirs is not None:
        yield Line("", None, f"transformers {theirs} (as one batch)")


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference; NaN if there is any NaN, so that no limit is met."""
    pairs = zip(ours, theirs, strict=True)
    return float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())


def _common(one: GeneratedTokens, other: GeneratedTokens) -> Iterator[tuple[float, float]]:
    """Pairs of log-probabilities of the tokens before the first that differs."""
    tokens = zip(one.token_ids[1:], other.token_ids[1:], strict=False)
    for (first, second), pair in zip(
        tokens, zip(one.token_logprobs, other.token_logprobs, strict=False), strict=False
    ):
        if first != second:
            return
        yield pair
