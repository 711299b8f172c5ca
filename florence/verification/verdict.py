"""Decides whether two answers to one trial agree, and if not, whether that is a fault.

Differences of token ids are of three kinds. Where the search may end early and short answers are penalised,
transformers 5 differs from the original: a known difference, if the original's search on transformers' own
logits gives this package's answer. Where two answers score almost equally, rounding decides: if both answers
appear when transformers' logits are changed by as little as the two sides differ. Everything else is a fault.
Knows nothing about models or reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from florence.engine.request import GenerationOptions
from florence.verification.theirs import GeneratedTokens
from florence.verification.trials import Trial

TOLERANCE: Final = 1e-3
"""Largest accepted difference of a log-probability in float32. Summation in another order causes 1e-4 at full
size."""

_NOISE: Final = 1e-5
_TRIES: Final = 8


class Verdict(StrEnum):
    """The verdict on one trial. The first three are not faults."""

    SAME = "same"
    KNOWN = "known difference"
    ROUNDING = "decided by rounding"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Compared:
    """A trial's two answers. `largest`: largest difference of log-probabilities over all tokens of equal
    answers; for different answers, between the two sides' values for this package's answer. `why`: an
    explanation."""

    trial: Trial
    verdict: Verdict
    largest: float
    ours: GeneratedTokens
    theirs: GeneratedTokens
    why: str = ""

    @property
    def same_ids(self) -> bool:
        return self.ours.token_ids == self.theirs.token_ids


class ReferenceModel(Protocol):
    """The part of `theirs.Transformers` that examines an answer that differs."""

    def logprobs(self, trial: Trial, token_ids: Sequence[int]) -> list[float]: ...

    def searched(self, trial: Trial, noise: float = 0.0, seed: int = 0) -> tuple[int, ...]: ...


def compare(
    trial: Trial, ours: GeneratedTokens, theirs: GeneratedTokens, reference: ReferenceModel
) -> Compared:
    """The verdict on one trial."""
    same = ours.token_ids == theirs.token_ids
    numbers = theirs.token_logprobs if same else reference.logprobs(trial, ours.token_ids)
    largest = largest_difference(ours.token_logprobs, numbers)
    if not largest <= TOLERANCE:
        reason = f"log-probabilities differ by {largest:.1e}"
        if not same and math.isinf(largest):
            reason = "the answer has a token that transformers' rules forbid there"
        elif not same:
            reason = f"other token ids; for these, {reason}"
        return Compared(trial, Verdict.FAULT, largest, ours, theirs, reason)
    if same:
        return Compared(trial, Verdict.SAME, largest, ours, theirs)
    verdict, why = _judge(trial, ours, theirs, reference, max(_NOISE, 4 * largest))
    return Compared(trial, verdict, largest, ours, theirs, why)


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of two lists of log-probabilities; infinite if only one of a pair is infinite,
    or one is NaN."""
    apart = (abs(one - other) for one, other in zip(ours, theirs, strict=True) if one != other)
    return max((math.inf if math.isnan(each) else each for each in apart), default=0.0)


def has_known_difference(options: GenerationOptions) -> bool:
    """Whether transformers 5 may end the search earlier than the original: it no longer counts a candidate
    that has just ended among those that could still win."""
    return options.num_beams > 1 and options.early_stopping is False and options.length_penalty > 0


def _judge(
    trial: Trial, ours: GeneratedTokens, theirs: GeneratedTokens, reference: ReferenceModel, noise: float
) -> tuple[Verdict, str]:
    """The verdict on different answers whose log-probabilities agree, and the explanation."""
    if has_known_difference(trial.options) and reference.searched(trial) == ours.token_ids:
        return Verdict.KNOWN, "transformers 5 ends this search earlier than the original"
    found = set()
    for seed in range(_TRIES):
        found.add(reference.searched(trial, noise, seed))
        if {ours.token_ids, theirs.token_ids} <= found:
            return Verdict.ROUNDING, f"a change of the logits by {noise:.0e} decides between the two"
    return Verdict.FAULT, "the numbers agree, the search does not"
