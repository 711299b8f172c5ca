"""Measures a checkpoint on held-out scenes: `python -m florence.demo.evaluate --seed N --count M [--hard]`.

Scene i of a seed is drawn from the held-out stream, which shares no scene with training. Every task is asked
once a scene (those on words only where a word stands). Boxes are measured by pycocotools, captions by
pycocoevalcap, characters by torchmetrics: `pip install ".[demo,evaluate]"` in the project's folder. Hard
scenes have four to six things, small ones smaller and some cut by the edge, in a picture that is blurred,
noisy and pale. Knows nothing about training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from florence.demo.draw import command_parser, read_things
from florence.demo.evaluation.exam import Exam, ask_model, ask_service, by_original_score
from florence.demo.evaluation.grading import Grade
from florence.demo.world.scenes import MAX_THINGS, Limits
from florence.errors import FlorenceError
from florence.evaluation.libraries import EVALUATORS, evaluator
from florence.evaluation.measures.calibration import (
    Judged,
    area_under_curve,
    expected_calibration_error,
    reliability,
)
from florence.evaluation.measures.captions import words_here
from florence.evaluation.measures.figures import Figures
from florence.evaluation.report import as_json
from florence.runtime.florence2 import Florence2
from florence.types.tasks import TASKS, Kind


def main() -> None:
    """The command."""
    parser = exam_parser(__doc__)
    parser.add_argument("--url", help="ask a running service at this address instead")
    parser.add_argument("--dtype", default="auto")
    run(parser, _evaluate)


def _evaluate(arguments: argparse.Namespace, exam: Exam) -> None:
    began = time.monotonic()
    if arguments.url is not None:
        results = ask_service(arguments.url, exam.items)
    else:
        with Florence2.load(arguments.checkpoint, dtype=arguments.dtype) as model:
            results = [answer.result for answer in ask_model(model, exam.items)]
    grades, words = exam.grade(results), words_here()
    figures = {task: one.figures for task, one in grades.items()}
    old = exam.grade([by_original_score(result) for result in results])
    print(table(figures), _reliability_table(grades), _old_scores(grades, old), sep="\n\n")
    print(f"\n{scenes_of(arguments)}, {time.monotonic() - began:.0f} s")
    print(f"average precision by pycocotools, CIDEr by pycocoevalcap after {words}")
    answered_by = {"url": arguments.url} if arguments.url else {"dtype": arguments.dtype}
    rows = {task: [asdict(row) for row in reliability(one.judged)] for task, one in grades.items()}
    report = {"caption_tokenizer": words, "tasks": as_json(figures), "reliability": rows}
    write_json(arguments, {**answered_by, **report})


def table(figures: Mapping[str, Figures]) -> str:
    """The figures as text, one line for each task."""
    lines = []
    for task, row in figures.items():
        parts = [f"{name} {value:.3f}" for name, value in row.items() if name != "questions"]
        lines.append(f"{task:38} {row['questions']:5.0f}  {'  '.join(parts)}")
    return "\n".join(lines)


def _reliability_table(grades: Mapping[str, Grade]) -> str:
    """For each kind of answer, by groups from the lowest to the highest scores: mean score and share of right
    ones."""
    kinds = _by_kind(grades)
    heads = [f"{len(judged)} {kind}: score, right" for kind, judged in kinds.items()]
    columns = [[f"{row.score:.3f}  {row.right:.3f}" for row in reliability(of)] for of in kinds.values()]
    errors = [f"ECE {expected_calibration_error(judged):.3f}" for judged in kinds.values()]
    areas = [f"AUC {area_under_curve(judged):.3f}" for judged in kinds.values()]
    rows = [heads, *zip_longest(*columns, fillvalue=""), errors, areas]
    return "\n".join("".join(f"{cell:>28}" for cell in row) for row in rows)


def _by_kind(grades: Mapping[str, Grade]) -> dict[str, list[Judged]]:
    """The judged items, by kind of answer."""
    kinds: dict[str, list[Judged]] = {}
    for task, one in grades.items():
        kind = TASKS.resolve(task).kind
        kind = Kind.BOXES if kind is Kind.BOXES_OR_POLYGONS else kind  # this world has boxes only
        kinds.setdefault(str(kind), []).extend(one.judged)
    return kinds


def _old_scores(grades: Mapping[str, Grade], old: Mapping[str, Grade]) -> str:
    """Metrics of the original's scores: calibration, area under the curve, average precision."""
    lines = ["by the original's score:"]
    for kind, judged in _by_kind(old).items():
        error, area = expected_calibration_error(judged), area_under_curve(judged)
        lines.append(f"{kind:38} ECE {error:.3f}  AUC {area:.3f}")
    for task, one in old.items():
        pairs = [(name, value, grades[task].figures[name]) for name, value in one.figures.items()]
        precision = [
            f"{name} {value:.3f} ({new:.3f})" for name, value, new in pairs if name.startswith("mAP")
        ]
        if precision:
            lines.append(f"{task:38} {'  '.join(precision)}")
    return "\n".join(lines)


def exam_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that select the questions and the checkpoint."""
    parser = command_parser(description, count=40)
    parser.set_defaults(things=None)
    parser.add_argument("--hard", action="store_true", help="hard scenes, of four to six things")
    parser.add_argument("--checkpoint", default="demo", help="demo, a directory or a hub id")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="tokens or names")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def run(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace, Exam], None]) -> None:
    """Run the command on the exam that its arguments select. An error ends it with one line on stderr."""
    arguments = parser.parse_args()
    arguments.things = arguments.things or ((4, MAX_THINGS) if arguments.hard else (1, 4))
    things = read_things(parser, arguments, MAX_THINGS)
    if arguments.count < 1 or arguments.seed < 0:
        parser.error("--count must be 1 or more, --seed 0 or more")
    try:
        for module in EVALUATORS:
            evaluator(module)  # before anything is asked
        tasks = [TASKS.resolve(task).token for task in arguments.tasks]
        limits = Limits(things=things, hard=arguments.hard)
        command(arguments, Exam.draw(arguments.seed, arguments.count, tasks, limits))
    except (FlorenceError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def scenes_of(arguments: argparse.Namespace) -> str:
    """A description of the scenes that were used."""
    things = "{} to {} things".format(*arguments.things)
    hard = "hard " if arguments.hard else ""
    return f"{arguments.count} {hard}scenes of {things}, held-out seed {arguments.seed}"


def write_json(arguments: argparse.Namespace, report: dict[str, object]) -> None:
    """Write the report and the arguments to the file of --json, if there is one."""
    if arguments.json is not None:
        asked = {"checkpoint": arguments.checkpoint} if not getattr(arguments, "url", None) else {}
        asked |= {
            "seed": arguments.seed,
            "scenes": arguments.count,
            "things": list(arguments.things),
            "hard": arguments.hard,
        }
        arguments.json.write_text(json.dumps({**asked, **report}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
