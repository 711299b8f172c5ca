"""Prompts, and tasks that only the service's checkpoint has, for both clients.

The kind of their answers is not known beforehand; `answer_as` states it: to the service for a prompt, to type
checkers for a task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Literal, TypeVar, Unpack, overload

from florence.client.exchange import CallOptions, ServiceCall, build_call, build_named_call
from florence.client.pictures import Picture
from florence.types.regions import Region
from florence.types.tasks import AnswerAs, Kind, prompt_task

TextT = TypeVar("TextT")
TagsT = TypeVar("TagsT")
JsonT = TypeVar("JsonT")
BoxesT = TypeVar("BoxesT")
QuadsT = TypeVar("QuadsT")
PolygonsT = TypeVar("PolygonsT")
FoundT = TypeVar("FoundT")
AnyT = TypeVar("AnyT")


class PromptMethods(ABC, Generic[TextT, TagsT, JsonT, BoxesT, QuadsT, PolygonsT, FoundT, AnyT]):
    """The methods `prompt` and `task`; they return and raise what the methods of the built-in tasks do."""

    @overload
    def prompt(
        self, image: Picture, prompt: str, *, answer_as: Literal["text"] = ..., **options: Unpack[CallOptions]
    ) -> TextT: ...

    @overload
    def prompt(
        self, image: Picture, prompt: str, *, answer_as: Literal["tags"], **options: Unpack[CallOptions]
    ) -> TagsT: ...

    @overload
    def prompt(
        self, image: Picture, prompt: str, *, answer_as: Literal["json"], **options: Unpack[CallOptions]
    ) -> JsonT: ...

    @overload
    def prompt(
        self, image: Picture, prompt: str, *, answer_as: Literal["boxes"], **options: Unpack[CallOptions]
    ) -> BoxesT: ...

    @overload
    def prompt(
        self, image: Picture, prompt: str, *, answer_as: Literal["quads"], **options: Unpack[CallOptions]
    ) -> QuadsT: ...

    @overload
    def prompt(
        self, image: Picture, prompt: str, *, answer_as: Literal["polygons"], **options: Unpack[CallOptions]
    ) -> PolygonsT: ...

    @overload
    def prompt(
        self,
        image: Picture,
        prompt: str,
        *,
        answer_as: Literal["boxes_or_polygons"],
        **options: Unpack[CallOptions],
    ) -> FoundT: ...

    @overload
    def prompt(
        self, image: Picture, prompt: str, *, answer_as: Kind | AnswerAs, **options: Unpack[CallOptions]
    ) -> AnyT: ...

    def prompt(
        self,
        image: Picture,
        prompt: str,
        *,
        answer_as: Kind | AnswerAs = "text",
        **options: Unpack[CallOptions],
    ) -> Any:
        """The answer to a prompt, which the model reads word for word. `answer_as`: how its text is read.

        For many pictures: `map` with `prompt_task(prompt, answer_as)` of `florence.types.tasks` as its task.
        """
        return self._send(partial(build_call, image, prompt_task(prompt, answer_as), None, None, options))

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Literal["text"],
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> TextT: ...

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Literal["tags"],
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> TagsT: ...

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Literal["json"],
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> JsonT: ...

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Literal["boxes"],
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> BoxesT: ...

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Literal["quads"],
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> QuadsT: ...

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Literal["polygons"],
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> PolygonsT: ...

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Literal["boxes_or_polygons"],
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> FoundT: ...

    @overload
    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Kind | AnswerAs | None = None,
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> AnyT: ...

    def task(
        self,
        name: str,
        image: Picture,
        text: str | None = None,
        *,
        answer_as: Kind | AnswerAs | None = None,
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """The answer to any task of the service's checkpoint, its own ones included, by its name or token.

        `answer_as`: the kind of the task's result, for type checkers; None: any. Raises UnexpectedReply where
        the result is of another kind, and NotFound, with suggestions, for a task that the service does not
        have.
        """
        return self._send(partial(build_named_call, image, name, text, region, answer_as, options))

    @abstractmethod
    def _send(self, build: Callable[[], ServiceCall]) -> Any:
        """The answer to the call that `build` makes, or an awaitable of it."""
