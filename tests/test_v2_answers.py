"""Answers in the original's format only, as the v2 protocol requests them from the library."""

from __future__ import annotations

import json
from concurrent.futures import wait
from pathlib import Path

import pytest

from florence import Florence2
from florence.errors import TaskError
from florence.types.tasks import TASKS, Input


def test_the_text_is_the_typed_answers_original_json(library: Florence2, picture: Path) -> None:
    """For each task the original's JSON and usage are the typed answer's."""
    asks = [(task.token, task.example if task.input is not Input.NONE else None) for task in TASKS.values()]
    typed = [library.submit(picture, task, text, max_new_tokens=8) for task, text in asks]
    originals = [library.submit_original(picture, task, text, max_new_tokens=8) for task, text in asks]
    wait([*typed, *originals])
    for one, other in zip(typed, originals, strict=True):
        answer, original = one.result(), other.result()
        assert json.loads(original.text) == answer.florence()
        assert (original.task, original.usage) == (answer.task, answer.usage)
        assert original.finish_reason == answer.finish_reason


def test_mistakes_fail_the_same_way(library: Florence2, picture: Path) -> None:
    """An error is in the future."""
    with pytest.raises(TaskError):
        library.submit_original(picture, "<NOPE>").result()
