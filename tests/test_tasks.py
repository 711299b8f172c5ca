"""The task table, and the prompts built from it, against the original's processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence.errors import TaskError
from florence.types.tasks import INPUT_SLOT, TASKS, TASKS_BY_NAME, Input, Kind, Task, build_prompt, get_task

WITH_INPUT = [task for task in TASKS.values() if task.input is not Input.NONE]
WITHOUT_INPUT = [task for task in TASKS.values() if task.input is Input.NONE]


def split_request(text: str) -> tuple[Task, str] | None:
    """The task at the start of an original request text, and the rest; None where it starts with none."""
    token = next((token for token in TASKS if text.startswith(token)), None)
    return None if token is None else (TASKS[token], text[len(token) :])


def test_prompts_equal_the_original(shared: Path) -> None:
    """Every prompt that the original accepts and our rules allow equals its, odd spacing and braces too."""
    cases: list[dict[str, Any]] = json.loads((shared / "goldens/A/golden.json").read_text())["prompts"]
    seen, refused = set(), []
    for case in cases:
        request = split_request(case.get("text", ""))
        if request is None:
            continue
        task, text = request
        try:
            prompt = build_prompt(task, text)
        except TaskError:
            refused.append(case["text"])
            continue
        assert prompt == case["prompt"]
        seen.add(task.token)
    assert seen == set(TASKS)
    assert refused == [
        "<CAPTION_TO_PHRASE_GROUNDING>",  # nothing to ground
        "<OD> extra",
        "<CAPTION_TO_PHRASE_GROUNDING>what is <OCR> here",
        "<REGION_TO_OCR><REGION_TO_CATEGORY><loc_1><loc_2><loc_3><loc_4>",
        "<REGION_TO_CATEGORY>x<REGION_TO_CATEGORY>y",
        "<CAPTION><CAPTION>",
    ]


def test_table_is_whole_and_immutable() -> None:
    """Fifteen tasks, unique tokens and names, an input slot where one is taken, no way to change it."""
    assert len(TASKS) == len(TASKS_BY_NAME) == 15
    for task in TASKS.values():
        assert TASKS_BY_NAME[task.name] is task is get_task(task.token) is get_task(task.name)
        assert task.prompt.count(INPUT_SLOT) == (task.input is not Input.NONE)
        assert (task.example is None) == (task.input is Input.NONE)
        assert task.summary.endswith(".")
        assert isinstance(task.kind, Kind)
    with pytest.raises(TypeError):
        TASKS["<NEW>"] = TASKS["<OD>"]  # type: ignore[index]


@pytest.mark.parametrize("task", WITH_INPUT, ids=lambda task: task.name)
def test_an_example_is_accepted(task: Task) -> None:
    """The example that an error shows is itself a good input."""
    assert task.example is not None
    assert task.example in build_prompt(task, task.example)


@pytest.mark.parametrize("task", WITH_INPUT, ids=lambda task: task.name)
@pytest.mark.parametrize("text", [None, "", " \n"])
def test_missing_input_is_refused_with_an_example(task: Task, text: str | None) -> None:
    """A task that needs text or a region says so by name, with an example to copy."""
    with pytest.raises(TaskError) as caught:
        build_prompt(task, text)
    message = str(caught.value)
    assert task.token in message
    assert f"needs a {task.input}" in message
    assert repr(task.example) in message
    assert ("pixels" in message) == (task.input is Input.REGION)


@pytest.mark.parametrize("task", WITHOUT_INPUT, ids=lambda task: task.name)
def test_text_is_refused_where_none_is_taken(task: Task) -> None:
    """A task that takes nothing refuses text, but an empty string (as v2 clients send) counts as none."""
    assert build_prompt(task) == build_prompt(task, "") == build_prompt(task, None) == task.prompt
    with pytest.raises(TaskError, match=f"{task.token} takes no text, got 'a cat'"):
        build_prompt(task, "a cat")


@pytest.mark.parametrize("token", TASKS)
def test_task_tokens_inside_the_text_are_refused(token: str) -> None:
    """No task token may stand in the text, not even its own; the message names it, with an example."""
    with pytest.raises(TaskError, match=f"{token} stands in it.*'a green car'"):
        build_prompt(TASKS["<OPEN_VOCABULARY_DETECTION>"], f"a {token} car")


@pytest.mark.parametrize("wrong", ["<od>", "OD", "Object_detection", "", "<TAGS>", "<OD> ", "x" * 10_000])
def test_unknown_tasks_list_all_fifteen(wrong: str) -> None:
    """An unknown task is refused by a message that names all fifteen and stays short whatever was sent."""
    with pytest.raises(TaskError) as caught:
        get_task(wrong)
    message = str(caught.value)
    assert all(token in message for token in TASKS)
    assert len(message) < 600


@given(task=st.sampled_from(WITH_INPUT), text=st.text())
def test_the_text_goes_in_as_it_is(task: Task, text: str) -> None:
    """Whatever text is taken can be read back unchanged from its prompt."""
    before, after = task.prompt.split(INPUT_SLOT)
    try:
        prompt = build_prompt(task, text)
    except TaskError:
        assert not text.strip() or any(token in text for token in TASKS)
        return
    assert prompt.startswith(before)
    assert prompt.endswith(after)
    assert prompt[len(before) : len(prompt) - len(after)] == text
