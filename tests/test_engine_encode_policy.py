"""The decision whether encodes run concurrently with steps, from times alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from florence.engine.encode_policy import (
    MARGIN,
    MOST_STEPS,
    Decision,
    Mix,
    Repeat,
    TrialTimes,
    decide,
    setting_of,
)

BETWEEN = TrialTimes(whole_s=0.1, step_p99_s=0.08)


@pytest.mark.parametrize(
    ("saved", "p99_s", "runs_beside", "why"),
    [
        (0.3, 0.002, True, "70.0 ms beside"),
        (MARGIN + 0.001, 0.249, True, ""),
        (MARGIN - 0.001, 0.002, False, "not quicker by 3%"),
        (-0.5, 0.002, False, "not quicker"),
        (0.3, 0.251, False, "longer than the encode budget of 250 ms"),
    ],
)
def test_encodes_run_concurrently_where_it_saves_enough(
    saved: float, p99_s: float, runs_beside: bool, why: str
) -> None:
    """Encodes run concurrently if this saves enough time and no step waits too long; the reason gives both
    times."""
    beside = TrialTimes(BETWEEN.whole_s * (1 - saved), p99_s)
    made = decide(BETWEEN, beside, 0.25)
    assert made == Decision(runs_beside, made.why, BETWEEN, beside)
    assert why in made.why
    assert "100.0 ms one after the other" in made.why
    assert setting_of(made) == ("on" if runs_beside else "off")
    assert setting_of(None) == "auto"


def test_the_quickest_repeat_counts_and_all_of_its_steps() -> None:
    """The quickest repeat gives the time, so a disturbed one does not count, but its long steps are
    reported."""
    dice = random.Random(0)
    quick = Repeat(1.0, [0.01 + dice.random() / 100 for _ in range(99)])
    slow = replace(quick, whole_s=5.0, steps_s=[*quick.steps_s, 3.0, 3.0, 3.0])
    assert TrialTimes.of([quick, slow]) == TrialTimes.of([slow, quick])
    assert TrialTimes.of([quick, slow]).whole_s == 1.0
    assert TrialTimes.of([quick]).step_p99_s == max(quick.steps_s)
    assert TrialTimes.of([quick, slow]).step_p99_s == 3.0
    assert TrialTimes.of([Repeat(1.0, [0.5])]).step_p99_s == 0.5


def test_a_trial_is_what_a_full_engine_does_at_a_time() -> None:
    """A trial has the steps that a full engine takes during one encode, limited by the room; a too small
    engine has none."""
    assert Mix.of(64, 16, 1024) == Mix(decoded=48, encoded=16, steps=18)
    assert Mix.of(1, 1, 1024) is None
    for slots in range(2, 70):
        for encoded in range(1, slots):
            for room in (3, 4, 20, 1024):
                mix = Mix.of(slots, encoded, room)
                assert (mix is None) == (room < 4)
                if mix is not None:
                    assert mix.decoded + mix.encoded == slots
                    assert 2 <= mix.steps <= min(MOST_STEPS, room - 2)
