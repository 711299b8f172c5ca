"""The tasks as methods, declared once for both clients, which differ in what a call returns.

`Client` returns answers, `AsyncClient` awaitables of the same answers. A line here tells type checkers what a
task takes and answers with; the rest comes from the table of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from typing import Any, Generic, Self, TypeVar, Unpack

from florence.client.exchange import CallOptions, build_call
from florence.client.pictures import Picture
from florence.client.prompts import (
    AnyT,
    BoxesT,
    FoundT,
    JsonT,
    PolygonsT,
    PromptMethods,
    QuadsT,
    TagsT,
    TextT,
)
from florence.types.regions import Region
from florence.types.tasks import TASKS, Task

T = TypeVar("T")
MapT = TypeVar("MapT")

CONCURRENCY = 32


class TaskMethod(Generic[T]):
    """A descriptor that asks the task of its own name, through the client that it is an attribute of."""

    _client: TaskMethods[Any, Any, Any, Any, Any, Any, Any, Any, Any]

    def __set_name__(self, owner: type, name: str) -> None:
        self.task = TASKS.resolve(name)
        self.__doc__ = self.task.summary

    def __get__(self, client: Any, owner: type | None = None) -> Self:
        bound = copy(self)
        bound._client = client
        return bound


class PlainMethod(TaskMethod[T]):
    """A task that takes nothing but the picture."""

    def __call__(self, image: Picture, **options: Unpack[CallOptions]) -> T:
        answer: T = self._client.run(image, self.task, **options)
        return answer


class TextMethod(TaskMethod[T]):
    """A task that takes a text."""

    def __call__(self, image: Picture, text: str, **options: Unpack[CallOptions]) -> T:
        answer: T = self._client.run(image, self.task, text, **options)
        return answer


class RegionMethod(TaskMethod[T]):
    """A task that takes a region."""

    def __call__(self, image: Picture, region: Region, **options: Unpack[CallOptions]) -> T:
        answer: T = self._client.run(image, self.task, region=region, **options)
        return answer


class TaskMethods(
    PromptMethods[TextT, TagsT, JsonT, BoxesT, QuadsT, PolygonsT, FoundT, AnyT],
    Generic[TextT, TagsT, JsonT, BoxesT, QuadsT, PolygonsT, FoundT, AnyT, MapT],
):
    """One method for each task. `image`: a path, bytes, a PIL image or pixels (see `pictures.Picture`).

    All raise the errors that `florence.client.errors` lists. Answers hold pixels of the picture after EXIF
    rotation.
    """

    _map_type: Callable[..., Any]  # the type of what `map` returns

    caption: PlainMethod[TextT] = PlainMethod()
    detailed_caption: PlainMethod[TextT] = PlainMethod()
    more_detailed_caption: PlainMethod[TextT] = PlainMethod()
    caption_to_phrase_grounding: TextMethod[BoxesT] = TextMethod()
    object_detection: PlainMethod[BoxesT] = PlainMethod()
    dense_region_caption: PlainMethod[BoxesT] = PlainMethod()
    region_proposal: PlainMethod[BoxesT] = PlainMethod()
    ocr: PlainMethod[TextT] = PlainMethod()
    ocr_with_region: PlainMethod[QuadsT] = PlainMethod()
    referring_expression_segmentation: TextMethod[PolygonsT] = TextMethod()
    region_to_segmentation: RegionMethod[PolygonsT] = RegionMethod()
    open_vocabulary_detection: TextMethod[FoundT] = TextMethod()
    region_to_category: RegionMethod[TextT] = RegionMethod()
    region_to_description: RegionMethod[TextT] = RegionMethod()
    region_to_ocr: RegionMethod[TextT] = RegionMethod()

    def run(
        self,
        image: Picture,
        task: str | Task,
        text: str | None = None,
        *,
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> AnyT:
        """Any task, by its name or token, where it is known only at run time; or a `Task` that the service's
        checkpoint adds to the built-in ones. The result's `kind` says which type it has."""
        answer: AnyT = self._send(partial(build_call, image, task, text, region, options))
        return answer

    def map(
        self,
        pictures: Iterable[Picture],
        /,
        task: str | Task,
        text: str | None = None,
        *,
        region: Region | None = None,
        concurrency: int = CONCURRENCY,
        ordered: bool = False,
        progress: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> MapT:
        """One task on many pictures: an iterator (asynchronous for `AsyncClient`) of (picture, answer), in
        the order in which answers arrive, or with `ordered` in the pictures' order.

        `concurrency`: requests in flight, and open files, at a time. A picture that fails does not end the
        iteration: it is in `failures` afterwards, and a warning counts them. `progress`: a bar on stderr;
        None: only if that is a terminal. `task` may be one that only the service's checkpoint has; an unknown
        task ends the iteration with NotFound or TaskError.
        """
        known = task if isinstance(task, Task) else TASKS.find(task)

        def ask(picture: Picture) -> AnyT:
            if known is None and isinstance(task, str):
                named: AnyT = self.task(task, picture, text, region=region, **options)
                return named
            return self.run(picture, known or task, text, region=region, **options)

        answers: MapT = self._map_type(
            ask, pictures, concurrency=concurrency, ordered=ordered, progress=progress
        )
        return answers
