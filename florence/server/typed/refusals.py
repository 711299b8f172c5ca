"""What is wrong with the input of a typed endpoint, and what to change.

Knows pydantic's errors, and the tasks' rules on text and regions, which are in `types`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ValidationError

from florence.errors import RequestError, TaskError, quote
from florence.types.analysis import MAX_TASKS, AnalysisTask
from florence.types.invalid import reason_of
from florence.types.options import RequestParameters, explain_option
from florence.types.regions import LOCATIONS_EXAMPLE, PIXELS_EXAMPLE
from florence.types.tasks import Input, Task

TASKS_EXAMPLE: Final = ("caption", {"task": "<CAPTION_TO_PHRASE_GROUNDING>", "text": "a green car"})
_PROBLEMS: Final = MappingProxyType(
    {"missing": "is missing", "extra_forbidden": "is unknown: a task has task, and text or region"}
)


def explain(error: Exception, input_type: type[BaseModel], task: Task | None) -> Exception:
    """The error that says which field of an input is wrong, and what is allowed; one that is not pydantic's
    unchanged. `task`: the endpoint's, if it is always the same."""
    if not isinstance(error, ValidationError):
        return error
    reasons: list[str] = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0])[:60] if detail["loc"] else ""
        if name == "tasks":
            return TaskError(_tasks_rule(detail["loc"], detail["type"], detail["input"]))
        if task and (
            name == "region" or (name == "text" and detail["type"] in ("missing", "extra_forbidden"))
        ):
            return TaskError(_input_rule(task, name))
        if name in RequestParameters.model_fields or not name:
            reasons.append(explain_option(detail))
        elif detail["type"] == "picture":  # its value is long
            message = detail["msg"]
            reasons.append(message if "picture" in message else f"{name}: {message}")
        else:
            reasons.append(reason_of(dict(detail), input_type.model_fields))
    return RequestError("; ".join(dict.fromkeys(reasons)))


def _input_rule(task: Task, name: str) -> str:
    if task.input is Input.NONE:
        return f"{task.token} takes no {name}; leave it out"
    if task.input is Input.TEXT:
        return f'{task.token} needs a text and takes nothing else: "text": {json.dumps(task.example)}'
    return (
        f'{task.token} needs a region and takes nothing else: "region": {list(PIXELS_EXAMPLE)} in pixels, '
        f'or "region": {json.dumps(LOCATIONS_EXAMPLE)} in thousandths of the picture\'s width and height'
    )


def _tasks_rule(place: Sequence[int | str], kind: str, sent: object) -> str:
    # A task's errors come from each type that it may have: tasks, 0, AnalysisTask, region, ...
    parts = [str(part) for part in place if part != AnalysisTask.__name__][:3]
    wrong = _PROBLEMS.get(kind) or f"can't be {quote(sent)}"
    return (
        f"{'.'.join(parts)} {wrong}; tasks is a list of 1 to {MAX_TASKS} such as {json.dumps(TASKS_EXAMPLE)}"
    )
