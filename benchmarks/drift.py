"""Measure how a precision changes answers: `python benchmarks/drift.py --dtypes float32 bfloat16 int8`.

The same questions about the same held-out scenes are asked in each precision and compared with the first: the
share of answers with the same whole text, and with the same words (without locations), the differences of
locations, and the change of each figure of `florence.demo.evaluate`. Knows nothing about causes.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from florence.answers.answer import Answer
from florence.demo.evaluate import exam_parser, run, scenes_of, write_json
from florence.demo.evaluation.exam import Exam, ask_model
from florence.demo.evaluation.grading import Grade
from florence.evaluation.measures.figures import Figures
from florence.evaluation.report import as_json
from florence.runtime.florence2 import Florence2

ALL: Final = "all tasks"
_LOCATION = re.compile(r"<loc_(\d+)>")
_LOCATIONS = re.compile(r"(?:<loc_\d+>)+")
_SPECIAL = re.compile(r"</?s>|<pad>")


def compare(first: Sequence[str], second: Sequence[str]) -> Figures:
    """Compare two lists of generated texts pair by pair; nan where there is nothing to compare.

    same_text: share of equal whole texts. same_words: among answers with words, the share with the same words
    between locations. comparable: among answers with locations, the share with equally many on both sides; of
    their locations, bins_same is the share that is equal, bins_mean and bins_p95 are the mean and the 95th
    percentile of their distance, in bins of 1/1000 of the picture's side.
    """
    pairs = list(zip(first, second, strict=True))
    words = [(_words(one), _words(two)) for one, two in pairs]
    bins = [[[int(number) for number in _LOCATION.findall(text)] for text in pair] for pair in pairs]
    located = [(one, two) for one, two in bins if one or two]
    like = [(one, two) for one, two in located if len(one) == len(two)]
    moves: list[float] = [abs(a - b) for one, two in like for a, b in zip(one, two, strict=True)]
    return {
        "answers": len(pairs),
        "same_text": _mean([one == two for one, two in pairs]),
        "same_words": _mean([one == two for one, two in words if any(one) or any(two)]),
        "comparable": len(like) / len(located) if located else math.nan,
        "bins_same": _mean([move == 0 for move in moves]),
        "bins_mean": _mean(moves),
        "bins_p95": float(np.percentile(moves or [math.nan], 95)),
    }


def _mean(values: Sequence[float]) -> float:
    """The mean, or nan of nothing."""
    return float(np.mean(values)) if values else math.nan


def _words(text: str) -> list[str]:
    """The text before, between and after runs of locations."""
    return [part.strip() for part in _LOCATIONS.split(_SPECIAL.sub("", text))]


def changes(first: Mapping[str, Grade], second: Mapping[str, Grade]) -> dict[str, Figures]:
    """The change of each figure by task, in points (hundredths), except CIDEr, which is out of ten."""
    return {
        task: {
            name: (second[task].figures[name] - value) * (1 if name == "CIDEr" else 100)
            for name, value in one.figures.items()
            if name not in ("questions", "CIDEr_of_truth")
        }
        for task, one in first.items()
    }


def compare_tasks(exam: Exam, answers: Sequence[Answer], others: Sequence[Answer]) -> dict[str, Figures]:
    """`compare` by task and over all tasks, for two lists of answers to the same questions."""
    rows = list(zip(exam.items, answers, others, strict=True))
    by_task = {task: [row for row in rows if row[0][1] == task] for task in exam.tasks}
    return {
        task: compare([one.raw_text for _, one, _ in of], [two.raw_text for _, _, two in of])
        for task, of in {**by_task, ALL: rows}.items()
    }


def table(compared: Mapping[str, Figures], changed: Mapping[str, Figures]) -> str:
    """A line for each task: how alike the answers are, then the change of each figure."""
    lines = [
        f"{'':38} {'answers':>7} {'text':>6} {'words':>6} {'bins':>6} {'mean':>6} {'p95':>6}  "
        "change in points (of CIDEr: out of ten)"
    ]
    for task, row in compared.items():
        shares = " ".join(f"{row[name]:6.3f}" for name in ("same_text", "same_words", "bins_same"))
        parts = [f"{name} {value:+.2f}" for name, value in changed.get(task, {}).items()]
        lines.append(
            f"{task:38} {row['answers']:7.0f} {shares} {row['bins_mean']:6.2f} {row['bins_p95']:6.1f}  "
            + "  ".join(parts)
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = exam_parser(__doc__)
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], help="the first is what others differ from"
    )
    run(parser, _drift)


def _drift(arguments: argparse.Namespace, exam: Exam) -> None:
    """Compare the dtypes and print the tables."""
    began = time.monotonic()
    answers, grades = {}, {}
    for dtype in dict.fromkeys(arguments.dtypes):
        with Florence2.load(arguments.checkpoint, dtype=dtype) as model:
            answers[dtype] = ask_model(model, exam.items)
        grades[dtype] = exam.grade([answer.result for answer in answers[dtype]])
    first, *others = answers
    drift: dict[str, object] = {}
    for dtype in others:
        compared = compare_tasks(exam, answers[first], answers[dtype])
        changed = changes(grades[first], grades[dtype])
        print(f"{dtype} against {first}", table(compared, changed), "", sep="\n")
        drift[dtype] = {"answers": as_json(compared), "changes": as_json(changed)}
    print(f"{scenes_of(arguments)}, {time.monotonic() - began:.0f} s; text, words, bins: share of the same")
    figures = {
        dtype: as_json({task: one.figures for task, one in of.items()}) for dtype, of in grades.items()
    }
    write_json(arguments, {"reference": first, "drift": drift, "figures": figures})


if __name__ == "__main__":
    main()
