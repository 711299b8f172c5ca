"""Tasks that a fine-tune has besides the built-in ones: their rows in a file, and presets for known
fine-tunes.

A file is a JSON array of rows, each with the fields of `DeclaredTask`. Knows the text of files, not their
paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from florence.errors import SettingsError, TaskError, quote
from florence.types.bounds import MAX_NGRAM
from florence.types.invalid import reason_of
from florence.types.regions import LOCATIONS_EXAMPLE
from florence.types.tasks import INPUT_SLOT, TASKS, Input, Kind, Task, TaskTable

TASKS_FILE: Final = "florence_tasks.json"
"""The file's name in a checkpoint's directory."""

_EXAMPLES: Final = MappingProxyType({Input.TEXT: "What is this?", Input.REGION: LOCATIONS_EXAMPLE})

TaskRow = tuple[str, object]
"""Where the row is from, for error messages; and the row."""


class DeclaredTask(BaseModel):
    """A task of a checkpoint: a row of `florence_tasks.json`, and of what `/info` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str = Field(
        min_length=1, max_length=100, description="Its name in v2 and in answers: <GENERATE_TAGS>."
    )
    name: str = Field(
        min_length=1, max_length=100, description="Its name in paths, clients and commands: generate_tags."
    )
    prompt: str = Field(
        default="",
        description="What the model reads, with {input} where the text or region goes. Left out: the token, "
        "and the input behind it.",
    )
    input: Input = Field(default=Input.NONE, description="Its input besides the picture.")
    kind: Kind = Field(default=Kind.TEXT, description="The kind of its result.")
    no_repeat_ngram_size: int | None = Field(
        default=0, ge=0, le=MAX_NGRAM, description="For requests without one; null: the checkpoint's."
    )
    summary: str = Field(default="", description="One sentence, for the API's pages.")
    example: str | None = Field(default=None, description="An example of its input, for errors and pages.")
    labelled: bool = Field(default=True, description="Whether boxes and polygons have labels.")

    @classmethod
    def of(cls, task: Task) -> DeclaredTask:
        """The row that declares a task."""
        return cls(**{name: getattr(task, name) for name in cls.model_fields})

    def task(self) -> Task:
        """The declared task."""
        slot = "" if self.input is Input.NONE else INPUT_SLOT
        return Task(
            token=self.token,
            name=self.name,
            prompt=self.prompt or self.token + slot,
            input=self.input,
            kind=self.kind,
            summary=self.summary or f"The checkpoint's task {self.token}.",
            example=self.example or _EXAMPLES.get(self.input),
            labelled=self.labelled,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )


def read_rows(text: str, source: str) -> list[TaskRow]:
    """The rows in a file's text. Raises `SettingsError`, which names the `source`, if it is not a JSON
    array."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise SettingsError(f"{source} must hold an array of tasks, got {quote(rows)}")
    return [(f"{source}, row {number}", row) for number, row in enumerate(rows, start=1)]


def declare(rows: Iterable[TaskRow]) -> list[Task]:
    """The tasks of all rows. Raises one `SettingsError` that names each row that is malformed or clashes with
    a built-in task or an earlier row."""
    table, wrong = TASKS, []
    for where, row in rows:
        try:
            table = table.extended([_read_row(row)])
        except SettingsError as error:
            wrong.append(f"{where}: {error}")
    if wrong:
        raise SettingsError("; ".join(wrong))
    return list(table.values())[len(TASKS) :]


def _read_row(row: object) -> Task:
    if not isinstance(row, Mapping):
        raise SettingsError(f"a row is an object with token, name and more, got {quote(row)}")
    try:
        return DeclaredTask.model_validate(row).task()
    except ValidationError as error:
        named = f"{quote(row['token'])}: " if row.get("token") else ""
        reasons = (reason_of(dict(detail), DeclaredTask.model_fields) for detail in error.errors())
        raise SettingsError(named + ", ".join(reasons)) from None


def _plain(*tokens: str, kind: Kind = Kind.TEXT) -> list[dict[str, Any]]:
    """Tasks whose prompt is their token."""
    return [{"token": f"<{token}>", "name": token.lower(), "kind": kind} for token in tokens]


PRESETS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = MappingProxyType(
    {
        # MiaoshouAI's PromptGen; the author's own programs write MIX where the cards write MIXED.
        "promptgen": [
            *_plain("GENERATE_TAGS", kind=Kind.TAGS),
            *_plain("MIXED_CAPTION", "MIX_CAPTION", "MIXED_CAPTION_PLUS", "MIX_CAPTION_PLUS"),
            *_plain("ANALYZE", "GENERATE_PROMPT"),
        ],
        # gokaygokay's captioners
        "description": [
            {
                "token": "<DESCRIPTION>",
                "name": "description",
                "prompt": "<DESCRIPTION>Describe this image in great detail.",
            }
        ],
        "docvqa": [{"token": "<DocVQA>", "name": "docvqa", "input": Input.TEXT}],
        "vqa": [{"token": "<VQA>", "name": "vqa", "input": Input.TEXT}],
    }
)
"""Rows for known families of fine-tunes, by their name in FLORENCE_TASKS."""


def find_declared(tasks: TaskTable, wanted: str, other: str) -> Task:
    """As `tasks.resolve`. The error also says what to do with a custom prompt: declare it, or `other`."""
    try:
        return tasks.resolve(wanted)
    except TaskError as error:
        token = wanted.strip()
        presets = (name for name, rows in PRESETS.items() if any(row["token"] == token for row in rows))
        preset = next(presets, None)
        how = "FLORENCE_TASKS" if preset is None else f"FLORENCE_TASKS={preset} has it"
        raise TaskError(f"{error}; for a custom prompt, declare a task ({how}), or {other}") from None
