"""Tasks that a fine-tune declares: rows, presets, and one error for all that is wrong in them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from florence.errors import SettingsError, TaskError
from florence.types.declared import PRESETS, DeclaredTask, declare, find_declared, read_rows
from florence.types.tasks import TASKS, Input, Kind, prompt_task


def rows(*given: Any) -> list[tuple[str, object]]:
    """These rows as read from a file."""
    return read_rows(json.dumps(given), "florence_tasks.json")


def test_a_row_needs_a_token_and_a_name_only() -> None:
    """A row needs only a token and a name; its prompt is then the token followed by the input, and n-grams
    may repeat."""
    plain, asking = declare(rows({"token": "<A>", "name": "a"}, {"token": "B", "name": "b", "input": "text"}))
    assert (plain.prompt, plain.input, plain.kind, plain.no_repeat_ngram_size) == ("<A>", "none", "text", 0)
    assert asking.prompt == "B{input}"
    assert TASKS.extended([asking]).build_prompt(asking, asking.example) == f"B{asking.example}"


def test_a_row_says_all_that_a_task_may_be() -> None:
    """A row may set each field of a task, and `/info` gives the same row."""
    row = DeclaredTask(
        token="<FIND>", name="find", prompt="Find {input}", input=Input.TEXT, kind=Kind.BOXES,
        no_repeat_ngram_size=None, summary="Boxes.", example="a cup", labelled=False,
    )  # fmt: skip
    (task,) = declare(rows(row.model_dump(mode="json")))
    assert DeclaredTask.of(task) == row
    assert (task.no_repeat_ngram_size, task.labelled) == (None, False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "a"}, "row 2: token is missing"),
        ({"token": "<A>"}, "row 2: '<A>': name is missing"),
        (
            {"token": "<A>", "name": "a", "kind": "table"},
            "row 2: '<A>': kind: input should be 'text', 'tags'",
        ),
        (
            {"token": "<A>", "name": "a", "input": 3},
            "'<A>': input: input should be 'none', 'text' or 'region'",
        ),
        ({"token": "<A>", "name": "a", "no_repeat_ngram_size": -1}, "greater than or equal to 0, got -1"),
        ({"token": "<A>", "name": "a", "promt": "x"}, "unknown field 'promt'; the fields are token, name"),
        ({"token": "<A>", "name": "a b"}, "the name of '<A>' must be letters, digits and _, got 'a b'"),
        ({"token": "<A>", "name": "a", "prompt": "x {input}"}, "the prompt of '<A>' must hold no {input}"),
        ({"token": "<OD>", "name": "a"}, "row 2: two tasks are called '<OD>'"),
        ({"token": "<A>", "name": "caption"}, "row 2: two tasks are called 'caption'"),
        ({"token": "<GOOD>", "name": "a"}, "row 2: two tasks are called '<GOOD>'"),
        ("<A>", "row 2: a row is an object with token, name and more, got '<A>'"),
    ],
)
def test_a_wrong_row_is_named(row: Any, message: str) -> None:
    """The error names only the wrong row, with its position, its token and its fault."""
    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        declare(rows({"token": "<GOOD>", "name": "good"}, row))
    assert "row 1" not in str(caught.value)


def test_all_wrong_rows_are_in_one_error() -> None:
    """One error lists all wrong rows."""
    with pytest.raises(SettingsError, match=r"row 1: .*; florence_tasks.json, row 3: .*<OCR>"):
        declare(rows({"token": "<A>"}, {"token": "<B>", "name": "b"}, {"token": "<OCR>", "name": "c"}))


@pytest.mark.parametrize("text", ["", "{", '{"token": "<A>"}', "[" * 100_000])
def test_a_file_that_is_no_array_is_refused_by_name(text: str) -> None:
    """The error for a file that holds no JSON array names the file."""
    with pytest.raises(SettingsError, match=r"^my_tasks.json (is not valid JSON|must hold an array)"):
        read_rows(text, "my_tasks.json")


def test_presets_can_be_used_together() -> None:
    """Presets conflict neither with each other nor with built-in tasks, and have the prompts of the
    fine-tunes' model cards."""
    made = declare(("preset", row) for preset in PRESETS.values() for row in preset)
    prompts = {task.token: task.prompt for task in made}
    assert set(PRESETS) == {"promptgen", "description", "docvqa", "vqa"}
    assert prompts["<GENERATE_TAGS>"] == "<GENERATE_TAGS>"
    assert prompts["<DESCRIPTION>"] == "<DESCRIPTION>Describe this image in great detail."
    assert prompts["<DocVQA>"] == "<DocVQA>{input}"
    assert {"<MIXED_CAPTION>", "<MIX_CAPTION>", "<MIXED_CAPTION_PLUS>", "<MIX_CAPTION_PLUS>"} <= set(prompts)
    assert {"<ANALYZE>", "<GENERATE_PROMPT>", "<VQA>"} <= set(prompts)
    assert {task.kind for task in made if task.name == "generate_tags"} == {Kind.TAGS}
    assert all(task.no_repeat_ngram_size == 0 for task in made)
    with pytest.raises(TaskError, match=r"\(FLORENCE_TASKS=promptgen has it\), or wait"):
        find_declared(TASKS, " <MIX_CAPTION>", "wait")
    with pytest.raises(TaskError, match=r"\(FLORENCE_TASKS\)"):
        find_declared(TASKS, "<NONE>", "wait")


def test_a_declared_token_without_brackets_may_stand_in_a_text() -> None:
    """A declared token without brackets is an ordinary word in a text."""
    table = TASKS.extended(declare(rows({"token": "car", "name": "cars"}, {"token": "<X>", "name": "x"})))
    grounding = table.resolve("caption_to_phrase_grounding")
    assert "a green car" in table.build_prompt(grounding, "a green car")
    with pytest.raises(TaskError, match="it contains <X>"):
        table.build_prompt(grounding, "a <X>")


def test_a_prompt_of_ones_own_is_a_task_that_is_read_as_it_is() -> None:
    """A custom prompt is a task whose braces, tokens and white space are kept."""
    task = prompt_task(" <OD>{input} \n", "json")
    assert TASKS.build_prompt(task) == " <OD>{input} \n" == task.token
    assert (task.kind, task.no_repeat_ngram_size) == (Kind.JSON, 0)
    for prompt in ("", " \n", None, 7):
        with pytest.raises(TaskError, match="a prompt is a text that is not blank"):
            prompt_task(prompt)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match=r"answer_as must be one of text, tags, json, boxes.*, got 'table'"):
        prompt_task("x", "table")
