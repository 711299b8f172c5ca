"""Formats figures as lines for people, and as JSON.

Knows nothing about how figures are computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from florence.evaluation.comparing import Difference
from florence.evaluation.measures.calibration import (
    MAX_TEMPERATURE,
    Judged,
    area_under_curve,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from florence.evaluation.measures.figures import Figures


def figure_lines(figures: Figures) -> list[str]:
    """A line for each figure."""
    return [f"{name:24} {_shown(value)}" for name, value in figures.items()]


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """A line for each figure of A and B; a star where 0 is outside the interval."""
    lines = [f"{'':24} {'A':>8} {'B':>8} {'B - A':>8}   95% interval"]
    for one in differences:
        numbers = " ".join(_shown(value) for value in (one.a, one.b, one.b - one.a))
        star = "  *" if one.is_clear else ""
        lines.append(f"{one.name:24} {numbers}   {_shown(one.low)} to {_shown(one.high).strip()}{star}")
    return lines


def _shown(value: float) -> str:
    return f"{'-':>8}" if math.isnan(value) else f"{value:8.3f}"


def calibration(judged: Sequence[Judged], temperature: float | None) -> dict[str, Any]:
    """A summary of scores: their number, ECE, AUC, the groups of `reliability`, and the fitted temperature.

    `temperature`: the one that the scores' log-odds were already divided by; None if the setting does not
    affect these scores. The fitted one is a value for FLORENCE_SCORE_TEMPERATURE.
    """
    fitted = None if temperature is None else fit_temperature(judged)
    report: dict[str, Any] = {
        "items": len(judged),
        "ECE": expected_calibration_error(judged),
        "AUC": area_under_curve(judged),
        "groups": [asdict(row) for row in reliability(judged)],
    }
    if fitted is not None and temperature is not None:
        report |= {
            "temperature": min(temperature * fitted.value, MAX_TEMPERATURE),
            "ECE_held_out": fitted.after,
        }
    return report


def calibration_lines(report: Mapping[str, Any]) -> list[str]:
    """The same as lines for people."""
    if not report["items"]:
        return []
    lines = ["", f"{report['items']} scores, from the lowest to the highest:   mean score   share right"]
    lines += [f"{row['count']:24} {row['score']:22.3f} {row['right']:13.3f}" for row in report["groups"]]
    lines.append(
        f"calibration error {report['ECE']:.3f}, area under the curve {_shown(report['AUC']).strip()}"
    )
    if "temperature" in report:
        lines.append(
            f"FLORENCE_SCORE_TEMPERATURE={report['temperature']:.3g} makes the calibration error "
            f"{report['ECE_held_out']:.3f} (fitted on one half, measured on the other)"
        )
    return lines


def as_json(value: Any) -> Any:
    """The value with nan replaced by null, since JSON has no nan."""
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
