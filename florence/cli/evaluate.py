"""`florence evaluate`: figures on one's own data, of a model loaded here or a service, or of two of them.

Turns a command line into files and answerers; the measures are in `florence.evaluation`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from florence.cli.bulk_arguments import add_pace
from florence.cli.telling import SOME_FAILED, tell_lines
from florence.client import Failure
from florence.evaluation.names import SUMMARIES
from florence.types.tasks import Task

if TYPE_CHECKING:
    from florence.cli.sides import Side
    from florence.evaluation.files.examples import Answered, Example
    from florence.evaluation.measures.figures import Evaluation

ANSWERS, ASKED, FIGURES, PAGE = "answers{}.jsonl", "asked{}.json", "figures.json", "worst.html"
EVALUATE: Final = (
    "measure a checkpoint or a service on your own annotated pictures, or compare two",
    "subjects:\n" + "\n".join(f"  {name:17}{summary}" for name, summary in SUMMARIES.items()),
)
"""The command's summary, and what its help ends with."""


def evaluate(arguments: argparse.Namespace) -> int:
    """`florence evaluate`; returns 0, or 3 where some questions have no answer."""
    from florence.cli.sides import read_sides, side_task
    from florence.evaluation.libraries import EVALUATORS, evaluator

    for module in EVALUATORS:
        evaluator(module)  # a missing library is an error before anything is asked, or needs numpy
    from florence.evaluation.subjects import SUBJECTS, Files

    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    subject, sides = SUBJECTS[arguments.subject], read_sides(arguments)
    tasks = [side_task(side, subject.task) for side in sides]
    measure, *_ = [subject.measure_for(task) for task in tasks]
    names = {field: getattr(arguments, field) for field in Files.__dataclass_fields__}
    questions = _first(subject.read(Files(**names), tasks[0]), arguments.limit)
    answered = [
        _answers(side, task, questions, arguments.out, "" if len(sides) == 1 else f"-{letter}")
        for side, task, letter in zip(sides, tasks, "ab", strict=False)
    ]
    both = [number for number in range(len(questions)) if all(rows[number] for rows, _ in answered)]
    failures = [failure for _, failed in answered for failure in failed]
    if not both:
        raise failures[0].error
    evaluations = [measure([row for number in both if (row := rows[number])]) for rows, _ in answered]
    _report(arguments, sides, tasks[0], evaluations, failures)
    return SOME_FAILED if failures else 0


def _first(questions: list[Example], limit: int | None) -> list[Example]:
    """The questions about the first `limit` pictures; None: all."""
    pictures = list(dict.fromkeys(example.picture for example in questions))[:limit]
    kept = set(pictures)
    return [example for example in questions if example.picture in kept]


def _answers(
    side: Side, task: Task, questions: Sequence[Example], out: Path | None, ending: str
) -> tuple[list[Answered | None], list[Failure]]:
    from florence.cli.sides import answer_all, check_same
    from florence.evaluation.files.examples import Answered

    file = None
    if out is not None:
        check_same(out / ASKED.format(ending), side.asked(task))
        file = out / ANSWERS.format(ending)
    answers, failures = answer_all(side, task, questions, file)
    rows = [
        None
        if answer is None
        else Answered(
            example, answer.result, example.size or (answer.image_size.width, answer.image_size.height)
        )
        for example, answer in zip(questions, answers, strict=True)
    ]
    turned = sum(
        example.size not in (None, answer.pixel_size)
        for example, answer in zip(questions, answers, strict=True)
        if answer is not None
    )
    if turned:
        tell_lines([f"{turned} pictures differ in size from the file (EXIF rotation?)"])
    return rows, failures


def _report(
    arguments: argparse.Namespace,
    sides: Sequence[Side],
    task: Task,
    evaluations: Sequence[Evaluation],
    failures: Sequence[Failure],
) -> None:
    """Print the figures, and write them and the page where --out says."""
    from florence.evaluation import page, report
    from florence.evaluation.comparing import compare

    first, last = evaluations[0], evaluations[-1]
    head = f"{arguments.subject}, {task.token}: {len(first.rows)} questions about {first.pictures} pictures"
    lines, facts = [head, ""], _facts(arguments, task, first, failures)
    if len(sides) == 1:
        figures = first.figures()
        scores = report.calibration(first.judged, None if task.kind.is_text else sides[0].temperature)
        lines += report.figure_lines(figures) + report.calibration_lines(scores)
        if sides[0].url and "temperature" in scores:
            lines.append("times the service's own FLORENCE_SCORE_TEMPERATURE, where that is set")
        facts |= {"figures": figures, "calibration": scores}
    else:
        differences = compare(first, last, resamples=arguments.resamples)
        lines += [f"{letter}: {side.name}" for letter, side in zip("AB", sides, strict=True)]
        lines += report.difference_lines(differences)
        facts["differences"] = [
            {"figure": each.name, "A": each.a, "B": each.b, "interval": [each.low, each.high]}
            for each in differences
        ]
    lines += ["", *first.notes] if first.notes else []
    if failures:
        lines.append(f"{len(failures)} failed and are in no figure; the first: {failures[0].error}")
    print("\n".join(lines))
    if arguments.out is not None:
        rows = page.worst(last, arguments.worst, better=first if len(sides) > 1 else None)
        shown = [page.Shown(side.name, each) for side, each in zip(sides, evaluations, strict=True)]
        (arguments.out / PAGE).write_text(page.html_page(head, lines[2:], shown, rows), encoding="utf-8")
        text = json.dumps(report.as_json(facts), indent=2, ensure_ascii=False)
        (arguments.out / FIGURES).write_text(text + "\n", encoding="utf-8")
        tell_lines([f"{arguments.out} has {FIGURES}, the answers, and {PAGE} with the worst pictures"])


def _facts(
    arguments: argparse.Namespace, task: Task, evaluation: Evaluation, failures: Sequence[Failure]
) -> dict[str, Any]:
    return {
        "subject": arguments.subject,
        "task": task.token,
        "questions": len(evaluation.rows),
        "pictures": evaluation.pictures,
        "failed": len(failures),
        "notes": evaluation.notes,
    }


def add_evaluate(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Add the command's own arguments. `count`: parses a whole number of 1 or more."""
    parser.add_argument(
        "subject", metavar="SUBJECT", choices=list(SUMMARIES), help="what to measure, see below"
    )
    parser.add_argument("--images", metavar="DIR", type=Path, required=True, help="directory of the pictures")
    files = parser.add_argument_group("ground truth (each subject needs one of these)")
    files.add_argument("--coco", metavar="FILE", type=Path, help="annotations in COCO's format")
    files.add_argument("--questions", metavar="FILE", type=Path, help="questions of VQA, or of DocVQA")
    files.add_argument("--annotations", metavar="FILE", type=Path, help="the answers to VQA's questions")
    files.add_argument("--rows", metavar="FILE", type=Path, help="JSON lines with picture, answer, text")
    parser.add_argument(
        "--all-classes",
        action="store_true",
        help="for open-vocabulary: ask about every class of the file in each picture",
    )
    parser.add_argument("--limit", metavar="N", type=count, help="only the first N pictures")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="directory for answers, figures (JSON) and a page of the worst pictures; a second run resumes",
    )
    parser.add_argument(
        "--worst", metavar="N", type=count, default=20, help="number of answers on that page (default: 20)"
    )
    parser.add_argument(
        "--compare",
        metavar=("A", "B"),
        nargs=2,
        help="compare two sides, each a checkpoint, a URL, or settings and options, such as dtype=int8 or "
        "model=NAME,adapter=DIR",
    )
    parser.add_argument(
        "--resamples",
        metavar="N",
        type=count,
        default=1000,
        help="bootstrap resamples for the intervals of --compare (default: 1000)",
    )
    add_pace(parser, count, "questions")
