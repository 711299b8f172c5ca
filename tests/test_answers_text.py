"""Answers read from the text alone: tags and JSON. Any text that a model writes gives an answer that can be
sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence.answers import parse_answer
from florence.answers.json_text import MAX_DEPTH, read_json
from florence.types.results import JsonValue, Tags
from florence.types.tasks import prompt_task

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)


def parsed(text: str, kind: str) -> Any:
    """The result of a text, for an answer of this kind."""
    return parse_answer(prompt_task("x", kind), text).result


@given(tags=st.lists(st.text("abc d"), max_size=6))
def test_tags_are_what_stands_between_the_commas(tags: list[str]) -> None:
    """Tags are the stripped, non-empty parts between commas."""
    result = parsed(f"</s><s>{','.join(tags)}</s>", "tags")
    assert isinstance(result, Tags)
    assert result.tags == [tag.strip() for tag in tags if tag.strip()]
    assert result.text == ",".join(tags).strip()


@given(value=VALUES)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    """A JSON value is read unchanged, and can be sent."""
    text = json.dumps(value)
    result = parsed(f"</s><s>{text}</s>", "json")
    if "\\ud" in text and result.error:  # half of a surrogate pair
        assert result.value is None
        return
    assert (result.value, result.error) == (value, None)
    assert json.loads(result.model_dump_json())["value"] == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("a red circle", "Expecting value"),
        ('{"a": 1', "Expecting ','"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("1e999", "1e999 is too large"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("9" * 5000, "4300 digits"),
        ("[" * 100_000, "arrays and objects"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} arrays"),
    ],
)
def test_what_is_no_json_has_the_text_and_the_reason(text: str, reason: str) -> None:
    """Text that is not JSON gives no value but the text and a reason, and this answer can be sent as JSON."""
    result = parsed(text, "json")
    assert isinstance(result, JsonValue)
    assert (result.value, result.text) == (None, text)
    assert reason in str(result.error)
    json.loads(result.model_dump_json())


def test_nested_json_up_to_the_limit_can_be_sent() -> None:
    """JSON nested up to the limit, and a number of 4000 digits, can be sent."""
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.loads(parsed(text, "json").model_dump_json())["value"] == json.loads(text)
    assert parsed("9" * 4000, "json").model_dump_json().count("9") == 8000


@given(text=st.text())
def test_any_text_is_read_or_refused_with_a_reason(text: str) -> None:
    """Any text gives a value, or an error without a value."""
    value, error = read_json(text)
    assert error is None or (value is None and error)
