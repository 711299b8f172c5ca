"""Measures a checkpoint on held-out scenes: `python -m florence.demo.evaluate --seed N --count M`.

Scene i of a seed is drawn from the held-out stream, which shares no scene with training. Every task is asked
once a scene (those on words only where a word stands). Boxes are measured by pycocotools, captions by
pycocoevalcap: `pip install ".[evaluate]"` in the project's folder. Knows nothing about training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from florence.demo.evaluation.answering import Answerer, ExamItem, ask_model, ask_service
from florence.demo.evaluation.evaluators import check_evaluators
from florence.demo.evaluation.grading import Grade, Graded, grade
from florence.demo.evaluation.metrics import Figures
from florence.demo.evaluation.report import as_json, reliability_table, table
from florence.demo.training.batches import draw_lots
from florence.demo.world.captions import words_here
from florence.demo.world.drawing import draw_scene
from florence.demo.world.ground_truth import Question, questions
from florence.demo.world.scenes import MOST_THINGS, Limits, Scene, Split, scene_rng
from florence.demo.world.typeface import Typeface
from florence.errors import FlorenceError
from florence.runtime.florence2 import Florence2
from florence.types.results import Result
from florence.types.tasks import TASKS


def held_out(seed: int, count: int, limits: Limits) -> list[tuple[Scene, Image.Image, list[Question]]]:
    """Scenes 0 to count - 1 of a held-out seed, drawn, with their questions."""
    typeface = Typeface()
    rows = []
    for index in range(count):
        rng = scene_rng(Split.HELD_OUT, seed, index)
        scene = draw_lots(rng, typeface, limits)
        rows.append((scene, draw_scene(scene, typeface), questions(scene, rng)))
    return rows


@dataclass(frozen=True)
class Exam:
    """Questions about held-out scenes: what is asked, and grades for what is answered."""

    tasks: tuple[str, ...]
    asked: list[tuple[Scene, Image.Image, Question]]

    @classmethod
    def draw(cls, seed: int, count: int, tasks: Sequence[str], limits: Limits) -> Exam:
        """Of these tasks about scenes 0 to count - 1."""
        return cls(
            tuple(tasks),
            [
                (scene, image, question)
                for scene, image, all_questions in held_out(seed, count, limits)
                for question in all_questions
                if question.task in tasks
            ],
        )

    @property
    def items(self) -> list[ExamItem]:
        return [(image, question.task, question.text) for _, image, question in self.asked]

    def grade(self, results: Sequence[Result]) -> dict[str, Grade]:
        """Of the results in the order of `items`, by task."""
        graded: dict[str, list[Graded]] = {task: [] for task in self.tasks}
        for (scene, _, question), result in zip(self.asked, results, strict=True):
            graded[question.task].append(Graded(scene, question, result))
        return {task: grade(task, rows) for task, rows in graded.items()}


def evaluate(
    ask: Answerer, seed: int, count: int, tasks: Sequence[str] = tuple(TASKS), limits: Limits | None = None
) -> dict[str, Figures]:
    """Figures by task, with the number of questions. Raises what `ask` raises, and MissingLibrary."""
    exam = Exam.draw(seed, count, tasks, limits or Limits())
    return {task: one.figures for task, one in exam.grade(ask(exam.items)).items()}


def main() -> None:
    """The command."""
    parser = exam_parser(__doc__)
    parser.add_argument("--url", help="ask a running service at this address instead")
    parser.add_argument("--dtype", default="auto")
    run(parser, _evaluate)


def _evaluate(arguments: argparse.Namespace, exam: Exam) -> None:
    began = time.monotonic()
    if arguments.url is not None:
        results = ask_service(arguments.url)(exam.items)
    else:
        with Florence2.load(arguments.checkpoint, dtype=arguments.dtype) as model:
            results = ask_model(model)(exam.items)
    grades, words = exam.grade(results), words_here()
    figures = {task: one.figures for task, one in grades.items()}
    print(table(figures), reliability_table(grades), sep="\n\n")
    print(f"\n{scenes_of(arguments)}, {time.monotonic() - began:.0f} s")
    print(f"average precision by pycocotools, CIDEr by pycocoevalcap after {words}")
    answered_by = {"url": arguments.url} if arguments.url else {"dtype": arguments.dtype}
    write_json(arguments, {**answered_by, "caption_tokenizer": words, **as_json(figures, grades)})


def exam_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that say which questions are asked of which checkpoint."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="demo", help="demo, a directory or a hub id")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40, help="scenes")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="tokens or names")
    parser.add_argument("--things", type=int, nargs=2, default=(1, 4), metavar=("FEWEST", "MOST"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def run(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace, Exam], None]) -> None:
    """The command on the exam that its arguments name. An error ends it with one line on stderr."""
    arguments = parser.parse_args()
    fewest, most = arguments.things
    if not 1 <= fewest <= most <= MOST_THINGS:
        parser.error(f"--things must lie between 1 and {MOST_THINGS}, the lesser first")
    if arguments.count < 1 or arguments.seed < 0:
        parser.error("--count must be 1 or more, --seed 0 or more")
    try:
        check_evaluators()
        tasks = [TASKS.resolve(task).token for task in arguments.tasks]
        limits = Limits(things=(fewest, most))
        command(arguments, Exam.draw(arguments.seed, arguments.count, tasks, limits))
    except (FlorenceError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def scenes_of(arguments: argparse.Namespace) -> str:
    """Which scenes were looked at."""
    fewest, most = arguments.things
    return f"{arguments.count} scenes of {fewest} to {most} things, held-out seed {arguments.seed}"


def write_json(arguments: argparse.Namespace, report: dict[str, object]) -> None:
    """The report where --json says, with what was asked."""
    if arguments.json is not None:
        asked = {"checkpoint": arguments.checkpoint} if not getattr(arguments, "url", None) else {}
        asked |= {"seed": arguments.seed, "scenes": arguments.count, "things": list(arguments.things)}
        arguments.json.write_text(json.dumps({**asked, **report}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
