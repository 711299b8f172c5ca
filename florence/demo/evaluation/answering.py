"""Two ways to have questions answered for an evaluation: by a loaded model, or by a running service.

Both give the typed results in the order of the questions. Knows nothing about scenes or measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from PIL import Image

from florence.answers.answer import Answer
from florence.client import Client
from florence.runtime.florence2 import Florence2
from florence.types.results import Result
from florence.types.tasks import TASKS, Input

ExamItem = tuple[Image.Image, str, str | None]  # picture, task, its text or region (as `<loc_n>`)
Answerer = Callable[[Sequence[ExamItem]], list[Result]]

_AT_ONCE: Final = 4  # requests to a service
_PATIENCE_S: Final = 120.0


def ask_model(model: Florence2) -> Answerer:
    """Questions to a loaded model. An answer that fails raises its own error."""
    return lambda items: [answer.result for answer in answers_of(model, items)]


def answers_of(model: Florence2, items: Sequence[ExamItem]) -> list[Answer]:
    """What a loaded model answers, with its tokens. An answer that fails raises its own error."""
    answers = []
    for answer in model.run_many(items):
        if not isinstance(answer, Answer):
            raise answer
        answers.append(answer)
    return answers


def ask_service(url: str) -> Answerer:
    """Questions to the typed endpoints of a service. Raises what `florence.client.Client` raises."""

    def ask(items: Sequence[ExamItem]) -> list[Result]:
        with (
            Client(url, timeout_s=_PATIENCE_S, retries=0) as client,
            ThreadPoolExecutor(_AT_ONCE) as pool,
        ):
            return list(pool.map(partial(_ask_one, client), items))

    return ask


def _ask_one(client: Client, item: ExamItem) -> Result:
    image, task, given = item
    if TASKS.resolve(task).input is Input.REGION:
        return client.run(image, task, region=given).result
    return client.run(image, task, given).result
