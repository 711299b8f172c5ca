"""Files of tasks: which entries are allowed, and the errors for wrong ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pages import DOCS, blocks

from florence.bulk.question import PictureQuestion, distinct, read_region, read_tasks_file
from florence.errors import MissingLibrary, RequestError, TaskError
from florence.types.tasks import TASKS, Kind

YAML = """
# what every picture is asked
tasks:
  - caption
  - task: open_vocabulary_detection
    text: a red circle
    options: {num_beams: 1, min_score: 0.25, labels: "car, red door"}
  - task: region_to_category
    region: [1, 2.5, 30, 40]
  - prompt: What is it?
    answer_as: tags
"""


def test_an_entry_has_texts_regions_options_and_prompts(tmp_path: Path) -> None:
    """An entry's texts, regions, options and prompts are read, from YAML and JSON; the command's options are
    its defaults."""
    (tmp_path / "t.yaml").write_text(YAML)
    found = read_tasks_file(tmp_path / "t.yaml", TASKS.resolve, {"num_beams": 3, "timeout_s": 9})
    assert [each.task.token for each in found[:3]] == [
        "<CAPTION>", "<OPEN_VOCABULARY_DETECTION>", "<REGION_TO_CATEGORY>",
    ]  # fmt: skip
    assert found[0].options == {"num_beams": 3, "timeout_s": 9}
    labels = ("car", "red door")
    assert found[1].options == {"num_beams": 1, "timeout_s": 9, "min_score": 0.25, "labels": labels}
    assert (found[1].text, found[2].region, found[2].given) == ("a red circle", "1,2.5,30,40", "1,2.5,30,40")
    assert (found[3].task.prompt, found[3].task.kind) == ("What is it?", Kind.TAGS)
    import yaml

    (tmp_path / "t.json").write_text(json.dumps(yaml.safe_load(YAML)["tasks"]))
    assert read_tasks_file(tmp_path / "t.json", TASKS.resolve, {"num_beams": 3, "timeout_s": 9}) == found


def test_the_documents_show_a_file_that_can_be_read(tmp_path: Path) -> None:
    """The documented example can be read."""
    (example,) = (block for block in blocks(DOCS / "command-line.md") if block.language == "yaml")
    (tmp_path / "t.yaml").write_text(example.code)
    assert len(read_tasks_file(tmp_path / "t.yaml", TASKS.resolve)) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- captoin", "task 1: unknown task 'captoin'"),
        ("- caption\n- caption", "asked twice"),
        ("- caption\n- {task: ocr, text: x}", "task 2: .*takes no text"),
        ("- {task: open_vocabulary_detection}", "task 1: .*text"),
        ("- {task: ocr, prompt: x}", "a task or a prompt"),
        ("- {text: x}", "a task or a prompt"),
        ("- {task: ocr, beams: 3}", "unknown field 'beams'; the fields are task, prompt"),
        (
            "- {task: ocr, options: {num_beams: 99}}",
            "task 1: num_beams must be an integer from 1 to 8, got 99",
        ),
        ("- {task: ocr, options: {page: 2}}", "page is an option of the whole run"),
        ("- {task: ocr, options: [1]}", "options is a mapping"),
        ("- {task: ocr, answer_as: text}", "leave it out"),
        ("- {prompt: x, answer_as: song}", "answer_as is text, tags"),
        ("- {task: region_to_ocr, region: [1, 2]}", "four numbers"),
        ("- {task: open_vocabulary_detection, text: 7}", "text must be a text, got 7"),
        ("- 7", "a task is a name, or a mapping"),
        ("tasks: caption", "must hold a list of tasks"),
        ("[]", "must hold a list of tasks"),
        ("{", "is not YAML: [^\n]*$"),
        ("[" * 100_000, "is not YAML"),
    ],
)
def test_a_wrong_entry_is_told_by_its_number(tmp_path: Path, content: str, words: str) -> None:
    """A wrong entry is an error that gives the reason, and its number where it has one."""
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(RequestError, match=words):
        read_tasks_file(tmp_path / "t.yaml", TASKS.resolve)


def test_without_pyyaml_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyYAML, the error names the extra that installs it; JSON files need no extra."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "t.yaml").write_text("- caption")
    with pytest.raises(MissingLibrary, match=r"\[tasks\]"):
        read_tasks_file(tmp_path / "t.yaml", TASKS.resolve)
    (tmp_path / "t.json").write_text('["caption"')
    with pytest.raises(RequestError, match="is not JSON"):
        read_tasks_file(tmp_path / "t.json", TASKS.resolve)


def test_questions_that_differ_in_an_adapter_are_two() -> None:
    """Questions with different adapters are different; questions that differ only in other options are
    refused."""
    plain = PictureQuestion(TASKS["<CAPTION>"])
    adapted = PictureQuestion(TASKS["<CAPTION>"], options={"adapter": "mine"})
    assert len(distinct([plain, adapted])) == 2
    with pytest.raises(TaskError, match="leave one out"):
        distinct([plain, PictureQuestion(TASKS["<CAPTION>"], options={"num_beams": 1})])
    for value, text in ((None, None), ("", None), ("<loc_1>", "<loc_1>"), ((1, 2, 3, 4.5), "1,2,3,4.5")):
        assert read_region(value) == text


def test_an_entry_may_name_an_adapter(tmp_path: Path) -> None:
    """A task with an adapter and the same task without one are two questions."""
    (tmp_path / "t.json").write_text('["caption", {"task": "caption", "adapter": "mine"}]')
    plain, adapted = read_tasks_file(tmp_path / "t.json", TASKS.resolve)
    assert (plain.key[3], adapted.key[3], adapted.options) == (None, "mine", {"adapter": "mine"})
