"""The README says what the program does: its tables, its files and its library example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from florence.settings import PREFIX, Settings
from florence.tasks import TASKS, Input, Kind, Task

ROOT = Path(__file__).resolve().parents[1]
INPUTS = {Input.NONE: "–", Input.TEXT: "`text`", Input.REGION: "`region`"}
KINDS = {
    Kind.TEXT: "text",
    Kind.BOXES: "boxes with labels",
    Kind.QUADS: "quads with text",
    Kind.POLYGONS: "polygons",
    Kind.BOXES_OR_POLYGONS: "boxes or polygons",
}


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def task_row(task: Task) -> str:
    return f"| `{task.token}` | `/{task.name}` | {INPUTS[task.input]} | {KINDS[task.kind]} |"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_its_row(readme: str, task: Task) -> None:
    assert task_row(task) in readme


def setting_row(name: str) -> str:
    field = Settings.model_fields[name]
    default = "" if field.default is None else f"`{field.default}`"
    return f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_its_row_with_its_default(readme: str, name: str) -> None:
    assert setting_row(name) in readme


def test_no_setting_is_named_that_does_not_exist(readme: str) -> None:
    named = set(re.findall(r"FLORENCE_[A-Z_]+[A-Z]", readme))
    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}


def test_every_file_and_target_that_is_named_exists(readme: str) -> None:
    for path in re.findall(r"\b(?:data|florence)/[\w./]*\w", readme):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)`", readme):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_library_example_runs(readme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, from the project's folder."""
    monkeypatch.chdir(ROOT)
    codes = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (example,) = [code for code in codes if "Florence2.load" in code]
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["answer"]
