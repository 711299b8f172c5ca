"""Decides whether encodes run beside decode steps or between them, from the times of both on the device that
will serve. `device/encode/trial.py` measures them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from florence.engine.config import EncodeStreamChoice

MARGIN = 0.03
"""Encodes beside steps must save this share of the time: smaller differences are noise between two trials."""

TRIAL_S = 2.0
"""A trial starts no repeat that is expected to end later than this many seconds after its begin."""

MAX_REPEATS = 3
"""Repeats of each way in a trial; the quickest counts."""

ANSWER_TOKENS = 74
"""Tokens of a mean answer, for the ratio of steps to encodes: the mean over the replaced deployment's nine
tasks."""

MAX_STEPS = 32
"""Most steps in one repeat."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What a full engine does at once: `encoded` requests are encoded while `decoded` others take `steps`."""

    decoded: int
    encoded: int
    steps: int

    @classmethod
    def of(cls, slots: int, encoded: int, room: int) -> Mix | None:
        """The mix of an engine with `slots` slots that encodes `encoded` requests together and has room for
        answers of `room` tokens; None where the engine is too small to encode and decode at once."""
        steps = min(round(ANSWER_TOKENS * encoded / slots), MAX_STEPS, room - 2)
        decoded = slots - encoded
        return cls(decoded, encoded, max(2, steps)) if decoded >= 1 and encoded >= 1 and room >= 4 else None


@dataclass(frozen=True, slots=True)
class Repeat:
    """Seconds of an encode with its steps (`whole_s`), and of each step from the end of the one before
    (`steps_s`): the time between tokens that requests see."""

    whole_s: float
    steps_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class TrialTimes:
    """One way's quickest repeat, and the 99th percentile of all its steps, in seconds."""

    whole_s: float
    step_p99_s: float

    @classmethod
    def of(cls, repeats: Sequence[Repeat]) -> TrialTimes:
        """From all repeats of one way."""
        steps = sorted(step for repeat in repeats for step in repeat.steps_s)
        return cls(min(repeat.whole_s for repeat in repeats), steps[ceil(0.99 * len(steps)) - 1])


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether encodes run beside steps, and why. `between`, `beside`: the times of both ways, None without a
    complete trial."""

    runs_beside: bool
    why: str
    between: TrialTimes | None = None
    beside: TrialTimes | None = None


def setting_of(decision: Decision | None) -> EncodeStreamChoice:
    """The setting that would have the same effect; "auto" while there is no decision."""
    if decision is None:
        return "auto"
    return "on" if decision.runs_beside else "off"


def decide(between: TrialTimes, beside: TrialTimes, encode_budget_s: float) -> Decision:
    """Beside steps where that is quicker by `MARGIN`, and no step takes longer than the encode budget."""
    saved = 1 - beside.whole_s / between.whole_s
    told = (
        f"an encode and its steps take {1e3 * beside.whole_s:.1f} ms beside each other, "
        f"{1e3 * between.whole_s:.1f} ms one after the other; 99% of the steps take at most "
        f"{1e3 * beside.step_p99_s:.1f} and {1e3 * between.step_p99_s:.1f} ms"
    )
    if saved < MARGIN:
        return Decision(False, f"{told}: not quicker by {MARGIN:.0%}", between, beside)
    if beside.step_p99_s > encode_budget_s:
        budget = f"longer than the encode budget of {1e3 * encode_budget_s:.0f} ms"
        return Decision(False, f"{told}: {budget}", between, beside)
    return Decision(True, told, between, beside)
