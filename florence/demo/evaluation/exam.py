"""Questions about held-out scenes, and two ways to get answers: from a loaded model, or from a service.

Knows nothing about training or how figures are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from PIL import Image

from florence.answers.answer import Answer
from florence.answers.filtering import with_items
from florence.client import Client
from florence.demo.evaluation.grading import Grade, Graded, grade
from florence.demo.world.drawing import held_out
from florence.demo.world.ground_truth import Question
from florence.demo.world.scenes import Limits, Scene
from florence.runtime.florence2 import Florence2
from florence.types.results import Result
from florence.types.tasks import TASKS, Input

ExamItem = tuple[Image.Image, str, str | None]  # picture, task, its text or region (as `<loc_n>`)

_CONCURRENCY: Final = 4  # requests to a service
_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class Exam:
    """Questions about held-out scenes, and the grading of answers."""

    tasks: tuple[str, ...]
    asked: list[tuple[Scene, Image.Image, Question]]

    @classmethod
    def draw(cls, seed: int, count: int, tasks: Sequence[str], limits: Limits) -> Exam:
        """An exam of these tasks on scenes 0 to `count` - 1."""
        scenes = held_out(seed, count, limits)
        asked = [(scene, image, question) for scene, image, questions in scenes for question in questions]
        return cls(tuple(tasks), [row for row in asked if row[2].task in tasks])

    @property
    def items(self) -> list[ExamItem]:
        return [(image, question.task, question.text) for _, image, question in self.asked]

    def grade(self, results: Sequence[Result]) -> dict[str, Grade]:
        """The grades by task; `results`: in the order of `items`."""
        graded: dict[str, list[Graded]] = {task: [] for task in self.tasks}
        for (scene, _, question), result in zip(self.asked, results, strict=True):
            graded[question.task].append(Graded(scene, question, result))
        return {task: grade(task, rows) for task, rows in graded.items()}


def ask_model(model: Florence2, items: Sequence[ExamItem]) -> list[Answer]:
    """A loaded model's answers, in the order of the questions. Raises the first error of an answer."""
    answers = []
    for answer in model.run_many(items):
        if not isinstance(answer, Answer):
            raise answer
        answers.append(answer)
    return answers


def by_original_score(result: Result) -> Result:
    """The result with the original's scores in place of the calibrated ones; a text has only one score."""
    return with_items(
        result, lambda items: [each.model_copy(update={"score": each.original_score}) for each in items]
    )


def ask_service(url: str, items: Sequence[ExamItem]) -> list[Result]:
    """The results from a service's typed endpoints. Raises what `florence.client.Client` raises."""

    def ask(item: ExamItem) -> Result:
        image, task, given = item
        text, region = (None, given) if TASKS.resolve(task).input is Input.REGION else (given, None)
        return client.run(image, task, text, region=region).result

    with Client(url, timeout_s=_TIMEOUT_S, retries=0) as client, ThreadPoolExecutor(_CONCURRENCY) as pool:
        return list(pool.map(ask, items))
