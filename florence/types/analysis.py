"""Many tasks on one picture in one call: the request and the answer of each task.

Plain types, shared by service and client. For a task that fails the answer is its error; it does not affect
the others.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from florence.types.answer import TaskAnswer
from florence.types.options import MAX_TEXT_CHARS
from florence.types.regions import REGION_FORMS, Region
from florence.types.results import Result, Text
from florence.types.tasks import one_input

MAX_TASKS = 64
"""Most tasks of one call."""


SentRegion = Annotated[list[float], Field(min_length=4, max_length=4)] | Annotated[str, Field(max_length=200)]
"""A region in a request: four numbers, or text."""


class AnalysisTask(BaseModel):
    """One task of a call, with the text or the region that it takes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"task": "caption_to_phrase_grounding", "text": "a green car"}]},
    )

    task: str = Field(max_length=100, description="A task's token or name: <OD> or object_detection.")
    text: str | None = Field(
        default=None, max_length=MAX_TEXT_CHARS, description="For a task that takes a text."
    )
    region: SentRegion | None = Field(
        default=None, description=f"For a task that takes a region: {REGION_FORMS}"
    )

    @property
    def given(self) -> Region | None:
        """The text or the region. Raises `TaskError` if both are given."""
        return one_input(self.text, self.region, f"{self.task[:60]}: ")


class TaskFailure(BaseModel):
    """Why a task failed, in place of its answer."""

    model_config = ConfigDict(frozen=True)

    task: str = Field(description="The task as the request named it.")
    error: str = Field(description="What went wrong, and what to change.")
    status: int = Field(ge=400, le=599, description="The HTTP status that this task alone would get.")


def _add_example(schema: dict[str, Any]) -> None:
    answer = TaskAnswer[Text].model_json_schema()["examples"][0]
    error = "<OCR> takes no text, got 'a car'; leave the text out"
    schema["examples"] = [{"answers": [answer, {"task": "<OCR>", "error": error, "status": 400}]}]


class Analysis(BaseModel):
    """The answers of one call, in the order of its tasks."""

    model_config = ConfigDict(frozen=True, json_schema_extra=_add_example)

    answers: list[TaskAnswer[Result] | TaskFailure]
