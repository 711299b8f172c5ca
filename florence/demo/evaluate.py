"""Measures a checkpoint on held-out scenes: `python -m florence.demo.evaluate --seed N --count M`.

Scene i of a seed is drawn from the held-out stream, which shares no scene with training. Every task is asked
once a scene (those on words only where a word stands). Knows nothing about training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from florence.demo.asking import Ask, ask_model, ask_service
from florence.demo.batches import draw_lots
from florence.demo.drawing import draw_scene
from florence.demo.grading import Figures, Graded, grade
from florence.demo.scenes import Limits, Scene, Split, scene_rng
from florence.demo.truths import Question, questions
from florence.demo.typeface import Typeface
from florence.florence2 import Florence2
from florence.tasks import TASKS, get_task


def held_out(seed: int, count: int, limits: Limits) -> list[tuple[Scene, Image.Image, list[Question]]]:
    """Scenes 0 to count - 1 of a held-out seed, drawn, with their questions."""
    typeface = Typeface()
    rows = []
    for index in range(count):
        rng = scene_rng(Split.HELD_OUT, seed, index)
        scene = draw_lots(rng, typeface, limits)
        rows.append((scene, draw_scene(scene, typeface), questions(scene, rng)))
    return rows


def evaluate(
    ask: Ask, seed: int, count: int, tasks: Sequence[str] = tuple(TASKS), limits: Limits | None = None
) -> dict[str, Figures]:
    """Figures by task, with the number of questions. Raises what `ask` raises."""
    asked = [
        (scene, image, question)
        for scene, image, all_questions in held_out(seed, count, limits or Limits())
        for question in all_questions
        if question.task in tasks
    ]
    results = ask([(image, question.task, question.text) for _, image, question in asked])
    graded: dict[str, list[Graded]] = {task: [] for task in tasks}
    for (scene, _, question), result in zip(asked, results, strict=True):
        graded[question.task].append(Graded(scene, question, result))
    return {task: {"questions": len(rows), **grade(task, rows)} for task, rows in graded.items()}


def table(figures: dict[str, Figures]) -> str:
    """The figures as lines of text."""
    lines = []
    for task, row in figures.items():
        parts = [f"{name} {value:.3f}" for name, value in row.items() if name != "questions"]
        lines.append(f"{task:38} {row['questions']:5.0f}  {'  '.join(parts)}")
    return "\n".join(lines)


def _finite(figures: dict[str, Figures]) -> dict[str, dict[str, float | None]]:
    return {
        task: {name: None if math.isnan(value) else value for name, value in row.items()}
        for task, row in figures.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="demo", help="demo, a directory or a hub id")
    parser.add_argument("--url", help="ask a running service at this address instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40, help="scenes")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="tokens or names")
    parser.add_argument("--things", type=int, nargs=2, default=(1, 4), metavar=("FEWEST", "MOST"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    tasks = [get_task(task).token for task in arguments.tasks]
    fewest, most = arguments.things
    began = time.monotonic()
    limits = Limits(things=(fewest, most))
    if arguments.url is not None:
        figures = evaluate(ask_service(arguments.url), arguments.seed, arguments.count, tasks, limits)
    else:
        with Florence2.load(arguments.checkpoint, dtype=arguments.dtype) as model:
            figures = evaluate(ask_model(model), arguments.seed, arguments.count, tasks, limits)
    print(table(figures))
    print(f"{arguments.count} scenes of {fewest} to {most} things, held-out seed {arguments.seed}, "
          f"{time.monotonic() - began:.0f} s; average precision by this package's own formula")  # fmt: skip
    if arguments.json is not None:
        report: dict[str, Any] = {
            "seed": arguments.seed,
            "scenes": arguments.count,
            "tasks": _finite(figures),
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
