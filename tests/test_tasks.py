"""The task table and its prompts, compared with the original's processor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence.client.exchange import build_analysis
from florence.errors import SettingsError, TaskError
from florence.types.tasks import INPUT_SLOT, TASKS, Input, Kind, Task, prompt_task, task_pairs

WITH_INPUT = [task for task in TASKS.values() if task.input is not Input.NONE]
TAGS = Task("<TAGS>", "tags", "List the tags.", Input.NONE, Kind.TEXT, "Tags of the picture.")
WITHOUT_INPUT = [task for task in TASKS.values() if task.input is Input.NONE]


def split_request(text: str) -> tuple[Task, str] | None:
    """The task at the start of an original's request and the rest, or None if it has no task."""
    token = next((token for token in TASKS if text.startswith(token)), None)
    return None if token is None else (TASKS[token], text[len(token) :])


def test_prompts_equal_the_original(shared: Path) -> None:
    """Each prompt that the original accepts and the table allows equals the original's, with odd spacing
    and braces too."""
    cases: list[dict[str, Any]] = json.loads((shared / "goldens/A/golden.json").read_text())["prompts"]
    seen, refused = set(), []
    for case in cases:
        request = split_request(case.get("text", ""))
        if request is None:
            continue
        task, text = request
        try:
            prompt = TASKS.build_prompt(task, text)
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
    """The table has fifteen tasks with unique tokens and names, an input slot where there is input, and
    can't be changed."""
    assert len(TASKS) == 15
    for task in TASKS.values():
        assert TASKS[task.token] is task is TASKS.resolve(task.token) is TASKS.resolve(task.name)
        assert TASKS.resolve(task) is task
        assert task.prompt.count(INPUT_SLOT) == (task.input is not Input.NONE)
        assert (task.example is None) == (task.input is Input.NONE)
        assert task.summary.endswith(".")
        assert isinstance(task.kind, Kind)
    with pytest.raises(TypeError):
        TASKS["<NEW>"] = TASKS["<OD>"]  # type: ignore[index]


@pytest.mark.parametrize("task", WITH_INPUT, ids=lambda task: task.name)
def test_an_example_is_accepted(task: Task) -> None:
    """A task's example is a valid input."""
    assert task.example is not None
    assert task.example in TASKS.build_prompt(task, task.example)


@pytest.mark.parametrize("task", WITH_INPUT, ids=lambda task: task.name)
@pytest.mark.parametrize("text", [None, "", " \n"])
def test_missing_input_is_refused_with_an_example(task: Task, text: str | None) -> None:
    """A task without its text or region is an error that names the task and shows an example."""
    with pytest.raises(TaskError) as caught:
        TASKS.build_prompt(task, text)
    message = str(caught.value)
    assert task.token in message
    assert f"needs a {task.input}" in message
    assert repr(task.example) in message
    assert ("pixels" in message) == (task.input is Input.REGION)


@pytest.mark.parametrize("task", WITHOUT_INPUT, ids=lambda task: task.name)
def test_text_is_refused_where_none_is_taken(task: Task) -> None:
    """A task without input refuses text; an empty string, which v2 clients send, counts as none."""
    assert (
        TASKS.build_prompt(task)
        == TASKS.build_prompt(task, "")
        == TASKS.build_prompt(task, None)
        == task.prompt
    )
    with pytest.raises(TaskError, match=f"{task.token} takes no text, got 'a cat'"):
        TASKS.build_prompt(task, "a cat")


@pytest.mark.parametrize("token", TASKS)
def test_task_tokens_inside_the_text_are_refused(token: str) -> None:
    """A task token in the text is refused by name, with an example."""
    with pytest.raises(TaskError, match=f"it contains {token}.*'a green car'"):
        TASKS.build_prompt(TASKS["<OPEN_VOCABULARY_DETECTION>"], f"a {token} car")


@pytest.mark.parametrize("wrong", ["<od>", "OD", "Object_detection", "", "<TAGS>", "<OD> ", "x" * 10_000])
def test_unknown_tasks_list_all_fifteen(wrong: str) -> None:
    """The short error for an unknown task lists tokens and names of all fifteen."""
    with pytest.raises(TaskError) as caught:
        TASKS.resolve(wrong)
    message = str(caught.value)
    assert all(f"{task.token} or {task.name}" in message for task in TASKS.values())
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("od", "<OD> or object_detection"),
        ("<od>", "<OD> or object_detection"),
        ("OCR", "<OCR> or ocr"),
        ("object-detection", "<OD> or object_detection"),
        ("detailed caption", "<DETAILED_CAPTION> or detailed_caption"),
        ("<CAPTON>", "<CAPTION> or caption"),
    ],
)
def test_a_near_miss_says_what_was_meant(wrong: str, meant: str) -> None:
    """An unknown task with other case, brackets, a hyphen or a typing error is answered with the most
    similar one."""
    with pytest.raises(TaskError, match=f"; did you mean {meant}\\?"):
        TASKS.resolve(wrong)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_spelling_of_a_task_is_one_rule(task: Task) -> None:
    """`match`, `read` and `means` know each task by token and name, without brackets, in any case, with
    hyphens or spaces, and by nothing that spells another task."""
    plain = (task.token, task.token.strip("<>"), task.name)
    ways = {way.replace("_", mark) for way in plain for mark in ("_", "-", " ")}
    ways |= {change(way) for way in ways for change in (str.upper, str.lower, str.title)}
    for way in ways:
        assert TASKS.match(way) is TASKS.read(way) is task, way
        assert [token for token in TASKS if TASKS.means(way, token)] == [task.token], way
    assert (task.built_in, task.path) == (True, task.name)


def test_tasks_outside_the_table_have_spellings_too() -> None:
    """A checkpoint's own task, and a prompt, are meant by their token in any case; no slip means a task."""
    assert TASKS.means("tags", "<TAGS>")
    assert TASKS.means("What is it?", "What is it?")
    assert not TASKS.means("OCR", "What is it?")
    assert not TASKS.means("tag", "<TAGS>")
    assert TASKS.match("captoin") is None
    with pytest.raises(TaskError, match="did you mean <CAPTION>"):
        TASKS.read("captoin")
    assert (TAGS.built_in, TAGS.path) == (False, "tasks/tags")
    assert prompt_task("<OD>").path == "prompt"


def test_an_exact_name_wins_over_a_spelling() -> None:
    """A declared task may be called as another is spelt."""
    own = replace(TAGS, name="OD")
    table = TASKS.extended([own])
    assert table.match("OD") is own
    assert table.match("od") is table["<OD>"]


def test_a_table_is_extended_without_changing_the_first() -> None:
    """An extended table has the new task by token and name and refuses it in other texts; the first table
    is unchanged."""
    more = TASKS.extended([TAGS])
    assert list(more) == [*TASKS, TAGS.token]
    assert more.resolve("tags") is more.resolve("<TAGS>") is TAGS
    assert TASKS.find("tags") is None
    with pytest.raises(TaskError, match="it contains <TAGS>"):
        more.build_prompt(TASKS.resolve("open_vocabulary_detection"), "a <TAGS> car")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": "<OD>"}, "two tasks are called '<OD>'"),
        ({"name": "caption"}, "two tasks are called 'caption'"),
        ({"name": "<OD>"}, "must be letters, digits and _"),
        ({"name": "a/b"}, "must be letters, digits and _"),
        ({"token": " "}, "has no token"),
        ({"prompt": "Tags of {input}"}, "must hold no {input}"),
        ({"input": Input.TEXT}, "must hold one {input}"),
    ],
)
def test_a_malformed_task_is_refused(changes: dict[str, Any], message: str) -> None:
    """A malformed task is an error that names the task and its fault."""
    with pytest.raises(SettingsError, match=re.escape(message)):
        TASKS.extended([replace(TAGS, **changes)])


@given(task=st.sampled_from(WITH_INPUT), text=st.text())
def test_the_text_goes_in_as_it_is(task: Task, text: str) -> None:
    """An accepted text is in its prompt unchanged."""
    before, after = task.prompt.split(INPUT_SLOT)
    try:
        prompt = TASKS.build_prompt(task, text)
    except TaskError:
        assert not text.strip() or any(token in text for token in TASKS)
        return
    assert prompt.startswith(before)
    assert prompt.endswith(after)
    assert prompt[len(before) : len(prompt) - len(after)] == text


def test_the_error_for_a_text_behind_the_token_says_where_to_put_it() -> None:
    """A text after the token, as the original's users write it, is an error that says where to put it."""
    with pytest.raises(TaskError, match=r"as the task, and its text or region separately.*TEXT_PROMPT"):
        TASKS.resolve("<CAPTION_TO_PHRASE_GROUNDING>a red moon")


@pytest.mark.parametrize("spec", [("region_to_category",), ("ocr", None, None), 5, (5, "a"), None])
def test_a_task_of_another_shape_is_refused(spec: Any) -> None:
    """The client's and the library's `analyze` refuse a malformed task, and show a valid one."""
    calls: list[Callable[[Any], object]] = [task_pairs, lambda specs: build_analysis(b"picture", specs, {})]
    for call in calls:
        with pytest.raises(TaskError, match=r"a pair of .* such as \('region_to_ocr'"):
            call([spec])
        with pytest.raises(TaskError, match="as a list, such as"):
            call("caption")


def test_tasks_are_pairs_with_what_belongs_to_them() -> None:
    """A task may be a name, a pair with its input, or a Task."""
    specs: list[Any] = ["caption", ("ocr", None), ["region_to_ocr", (1, 2, 3, 4)], TASKS["<OD>"]]
    assert task_pairs(specs) == [
        ("caption", None), ("ocr", None), ("region_to_ocr", (1, 2, 3, 4)), (TASKS["<OD>"], None)
    ]  # fmt: skip
