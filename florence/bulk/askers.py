"""Functions that ask about one picture: a service, several services, or a model in this process.

The questions about a picture are asked together, so that it is sent, read and encoded once; questions with
different options, and prompts, need separate calls. Knows nothing about where items come from or where
answers go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from PIL import Image

from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import QuestionOutcome
from florence.client import Client
from florence.errors import FlorenceError, RequestError
from florence.images.decode import open_image
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.pdf import is_pdf
from florence.images.seen import View
from florence.types.analysis import MAX_TASKS, TaskFailure
from florence.types.answer import TaskAnswer

CallClient = Callable[[Callable[[Client], Any]], Any]
"""Calls a function with a client of the service; of several services, with one of the least busy."""


class ServiceAsker:
    """Asks one or several services. `limits`: `max_bytes` is for all pictures; the others are for documents,
    whose pages are rendered here, since a service reads no PDF and should get one page of a TIFF file, not
    all."""

    def __init__(self, call: CallClient, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._call, self._limits = call, limits

    def __call__(self, item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
        try:
            picture = self._picture(item, questions[0].options)
        except FlorenceError as error:
            return [error] * len(questions)
        place = {"frame": item.frame} if item.frame is not None else {}
        return _in_groups(questions, lambda group: self._ask(picture, group, place))

    def _picture(self, item: PictureItem, options: Mapping[str, Any]) -> bytes | Image.Image:
        """The file's bytes; for a document, the page as a picture. Raises `ImageError`."""
        data = item.read(self._limits.max_bytes)
        if item.page is None and not is_pdf(data):
            return data
        return open_image(data, self._limits, View(options.get("pictures") == "original", page=item.page))

    def _ask(
        self, picture: Any, group: Sequence[PictureQuestion], place: Mapping[str, int]
    ) -> list[QuestionOutcome]:
        options: dict[str, Any] = {**group[0].options, **place}
        if len(group) == 1:
            one = group[0]
            return [
                self._call(
                    lambda client: client.run(picture, one.task, one.text, region=one.region, **options)
                )
            ]
        specs = [(each.task, each.given) if each.given is not None else each.task for each in group]
        answers = self._call(lambda client: client.analyze(picture, specs, **options))
        return [RequestError(each.error) if isinstance(each, TaskFailure) else each for each in answers]


class ModelAsker:
    """Asks a model in this process (`Florence2`), with at most as many requests at a time as its queue
    takes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._max_queue: int = model.info()["limits"]["max_queue"]
        self._free, self._change = self._max_queue, threading.Condition()

    def __call__(self, item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
        picture: Any = item.source  # read by the model's readers
        if callable(picture):
            picture = item.read
        return _in_groups(questions, lambda group: self._ask(picture, group, item.place))

    def _ask(
        self, picture: Any, group: Sequence[PictureQuestion], place: Mapping[str, int]
    ) -> list[QuestionOutcome]:
        options: dict[str, Any] = {**group[0].options, **place}
        of_one = self._max_queue // self._model.room(**options) if "tiles" in options else 1
        count = min(len(group) * of_one, self._max_queue)
        with self._change:
            self._change.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            futures = self._model.submit_all(picture, [(each.task, each.given) for each in group], **options)
            return [_outcome(future) for future in futures]
        finally:
            with self._change:
                self._free += count
                self._change.notify_all()


def _in_groups(
    questions: Sequence[PictureQuestion], ask: Callable[[Sequence[PictureQuestion]], list[QuestionOutcome]]
) -> list[QuestionOutcome]:
    """The outcomes in the order of the questions. An error of a call is the outcome of each of its
    questions."""
    outcomes: dict[int, QuestionOutcome] = {}
    for numbers in _groups(questions):
        try:
            answers = ask([questions[number] for number in numbers])
        except FlorenceError as error:
            answers = [error] * len(numbers)
        outcomes.update(zip(numbers, answers, strict=True))
    return [outcomes[number] for number in range(len(questions))]


def _groups(questions: Sequence[PictureQuestion]) -> list[list[int]]:
    """Indices of the questions that go into each call."""
    found: list[tuple[object, list[int]]] = []
    for number, each in enumerate(questions):
        options = None if each.task.is_prompt else dict(each.options)
        alike = (group for known, group in reversed(found) if options is not None and known == options)
        same = next(alike, None)
        if same is None or len(same) == MAX_TASKS:
            found.append((options, same := []))
        same.append(number)
    return [group for _, group in found]


def _outcome(future: Future[TaskAnswer[Any]]) -> QuestionOutcome:
    try:
        return future.result()
    except FlorenceError as error:
        return error
