"""Questions about a picture: a task with its text, region and options; and files with several questions.

Knows the types of requests; knows nothing about pictures, models and services.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from florence.errors import FlorenceError, MissingLibrary, RequestError, TaskError, quote
from florence.types.options import read_request_parameters
from florence.types.tasks import TASKS, Input, Kind, Task, prompt_task

TaskKey = tuple[str, str | None, str | None, str | None]
"""The key of a question: the task's token, text, region, adapter."""

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_FIELDS: Final = ("task", "prompt", "answer_as", "text", "region", "adapter", "options")
FindTask = Callable[[str], Task]
"""Finds a task by name or token; raises `TaskError`."""


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """One task with its input besides the picture. `region`: as text. `options`: of the request, validated
    (`RequestParameters`), and `timeout_s`."""

    task: Task
    text: str | None = None
    region: str | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def key(self) -> TaskKey:
        """Identifies the question among those about the same picture."""
        return self.task.token, self.text, self.region, self.options.get("adapter")

    @property
    def given(self) -> str | None:
        """The text, or the region."""
        return self.text if self.region is None else self.region

    def checked(self) -> PictureQuestion:
        """The question itself. Raises `TaskError` where the task's text or region is missing or not
        allowed."""
        TASKS.check_input(self.task, self.given)
        return self

    def with_given(self, text: str | None, region: str | None) -> PictureQuestion:
        """The same task with another text or region, if it takes one."""
        if text is not None and self.task.input is Input.TEXT:
            return replace(self, text=text)
        if region is not None and self.task.input is Input.REGION:
            return replace(self, region=region)
        return self


def distinct(questions: Iterable[PictureQuestion]) -> tuple[PictureQuestion, ...]:
    """The questions. Raises `TaskError` where two of them have the same key, so that their answers could not
    be told apart."""
    found: dict[TaskKey, PictureQuestion] = {}
    for each in questions:
        if found.setdefault(each.key, each) is not each:
            raise TaskError(
                f"{each.task.token} is asked twice with the same text, region and adapter; one answer a "
                "picture and task is kept, so leave one out"
            )
    return tuple(found.values())


def read_region(value: object) -> str | None:
    """A region as text, from text or four numbers. Raises `TaskError` for anything else."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and len(value) == 4 and all(type(n) in (int, float) for n in value):
        return ",".join(f"{number:g}" for number in value)
    raise TaskError(f"a region is four numbers or a text, got {quote(value)}")


def read_tasks_file(
    path: Path, find: FindTask, options: Mapping[str, Any] = _NOTHING
) -> tuple[PictureQuestion, ...]:
    """The questions in a YAML or JSON file: a list, or a list under `tasks`. An entry is a task's name, or an
    object with `task` or `prompt`, and optionally `answer_as`, `text`, `region`, `adapter`, `options`.

    `options`: defaults for entries. Raises `RequestError`, which names the entry.
    """
    content = parse_file(path)
    entries = content.get("tasks") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise RequestError(f"{path} must hold a list of tasks, or one under `tasks`, got {quote(content)}")
    questions = []
    for number, entry in enumerate(entries, start=1):
        try:
            questions.append(_read_entry(entry, find, options))
        except FlorenceError as error:
            raise RequestError(f"{path}, task {number}: {error}") from None
    return distinct(questions)


def parse_file(path: Path) -> Any:
    """The content of a JSON file (by its suffix) or YAML file. Raises `RequestError`, `MissingLibrary`
    without pyyaml."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not text in UTF-8: {error}") from None
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path} is not JSON: {error}") from None
    try:
        import yaml
    except ImportError as error:
        raise MissingLibrary("a file in YAML", "pyyaml", "tasks") from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}") from None  # on one line


def _read_entry(entry: object, find: FindTask, options: Mapping[str, Any]) -> PictureQuestion:
    fields = {"task": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        raise TaskError(f"a task is a name, or a mapping with {', '.join(_FIELDS)}; got {quote(entry)}")
    if unknown := [name for name in fields if name not in _FIELDS]:
        raise TaskError(f"unknown field {quote(unknown[0])}; the fields are {', '.join(_FIELDS)}")
    own = fields.get("options") or {}
    if not isinstance(own, dict):
        raise TaskError(f"options is a mapping such as num_beams: 1, got {quote(own)}")
    if fields.get("adapter") is not None:
        own = {**own, "adapter": fields["adapter"]}
    if placed := [name for name in ("page", "frame") if name in own]:
        raise TaskError(f"{placed[0]} is an option of the whole run; leave it out here")
    checked = read_request_parameters(own).model_dump(exclude_none=True)
    text = fields.get("text")
    if text is not None and not isinstance(text, str):
        raise TaskError(f"text must be a text, got {quote(text)}")
    task = _task_of(fields, find)
    return PictureQuestion(task, text, read_region(fields.get("region")), {**options, **checked}).checked()


def _task_of(fields: Mapping[str, Any], find: FindTask) -> Task:
    task, prompt = fields.get("task"), fields.get("prompt")
    if (task is None) == (prompt is None):
        raise TaskError("an entry has a task or a prompt")
    if task is not None:
        if fields.get("answer_as") is not None:
            raise TaskError("answer_as says how the answer to a prompt is read; leave it out")
        return find(str(task))
    try:
        kind = Kind(fields.get("answer_as") or Kind.TEXT)
    except ValueError:
        raise TaskError(f"answer_as is {', '.join(Kind)}, got {quote(fields['answer_as'])}") from None
    return prompt_task(str(prompt), kind)
