"""An evaluation as lines of text and as JSON. Knows nothing about how it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from florence.demo.evaluation.calibration import Judged, expected_calibration_error, reliability
from florence.demo.evaluation.grading import Grade
from florence.demo.evaluation.metrics import Figures
from florence.types.tasks import TASKS, Kind


def table(figures: Mapping[str, Figures]) -> str:
    """The figures, a line a task."""
    lines = []
    for task, row in figures.items():
        parts = [f"{name} {value:.3f}" for name, value in row.items() if name != "questions"]
        lines.append(f"{task:38} {row['questions']:5.0f}  {'  '.join(parts)}")
    return "\n".join(lines)


def reliability_table(grades: Mapping[str, Grade]) -> str:
    """For each kind of answer, from the lowest scores to the highest: mean score, share of right ones."""
    kinds: dict[str, list[Judged]] = {}
    for task, one in grades.items():
        kinds.setdefault(_kind(task), []).extend(one.judged)
    heads = [f"{len(judged)} {kind}: score, right" for kind, judged in kinds.items()]
    columns = [[f"{row.score:.3f}  {row.right:.3f}" for row in reliability(of)] for of in kinds.values()]
    errors = [f"ECE {expected_calibration_error(judged):.3f}" for judged in kinds.values()]
    rows = [heads, *zip_longest(*columns, fillvalue=""), errors]
    return "\n".join("".join(f"{cell:>28}" for cell in row) for row in rows)


def _kind(task: str) -> str:
    kind = TASKS.resolve(task).kind
    return str(Kind.BOXES if kind is Kind.BOXES_OR_POLYGONS else kind)  # this world asks for boxes only


def as_json(figures: Mapping[str, Figures], grades: Mapping[str, Grade]) -> dict[str, Any]:
    """`tasks`: the figures, null where there was nothing to measure; `reliability`: the rows of each task."""
    return {
        "tasks": finite(figures),
        "reliability": {
            task: [asdict(row) for row in reliability(one.judged)] for task, one in grades.items()
        },
    }


def finite(figures: Mapping[str, Figures]) -> dict[str, dict[str, float | None]]:
    """JSON has no nan."""
    return {
        task: {name: None if math.isnan(value) else value for name, value in row.items()}
        for task, row in figures.items()
    }
