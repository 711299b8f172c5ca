"""The README is short, and shows the demo checkpoint's answers: a picture, a typed answer, the tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops
from serving import ROOT

from florence import Florence2
from florence.answers.answer import Answer
from florence.types.answer import TaskAnswer
from florence.types.results import Detections, OcrRegions, Segmentation, Text
from florence.types.tasks import TASKS, Input, Kind, Task

LONGEST = 250
INPUTS = {Input.NONE: "–", Input.TEXT: "`text`", Input.REGION: "`region`"}
KINDS = {
    Kind.TEXT: "text",
    Kind.BOXES: "boxes with labels",
    Kind.QUADS: "quads with text",
    Kind.POLYGONS: "polygons",
    Kind.BOXES_OR_POLYGONS: "boxes or polygons",
}
EXAMPLE = ROOT / "data" / "scene_04.jpg"
PICTURE = ROOT / "data" / "scene_02.png"
TRIANGLE, WORD = (221, 215, 284, 276), (110, 181, 252, 224)
GIVEN: dict[str, Any] = {
    "caption_to_phrase_grounding": "a yellow triangle and a red moon",
    "referring_expression_segmentation": "a yellow triangle",
    "region_to_segmentation": TRIANGLE,
    "open_vocabulary_detection": "orange diamond",
    "region_to_category": TRIANGLE,
    "region_to_description": TRIANGLE,
    "region_to_ocr": WORD,
}


@pytest.fixture(scope="module")
def readme() -> str:
    """The README's text."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> Iterator[Florence2]:
    """The library with the demo checkpoint."""
    with Florence2.load("demo", device="cpu", dtype="float32") as loaded:
        yield loaded


def test_it_is_short_and_says_first_what_is_not_proven(readme: str) -> None:
    """The README is short, and says before the installation what is not proven."""
    assert len(readme.splitlines()) <= LONGEST
    assert readme.index("No GPU has run this code yet") < readme.index("## Two commands")


def task_row(task: Task, answer: Answer) -> str:
    """The table row of a task with its answer."""
    given = GIVEN.get(task.name)
    taken = INPUTS[task.input]
    if given is not None:
        taken += f": {given if isinstance(given, str) else ', '.join(map(str, given))}"
    return f"| `{task.token}` | `/{task.name}` | {taken} | {KINDS[task.kind]} | {example(answer)} |"


def example(answer: Answer) -> str:
    """A text, or the first item found and the number of the others."""
    result = answer.result
    if isinstance(result, Text):
        return result.text
    if isinstance(result, Detections):
        things = [(found.label, found.box) for found in result.detections]
    elif isinstance(result, OcrRegions):
        things = [(read.text, read.quad) for read in result.regions]
    else:
        assert isinstance(result, Segmentation)
        things = [(instance.label, instance.polygons[0]) for instance in result.instances]
    label, place = things[0]
    numbers = ", ".join(f"{value:.0f}" for value in place[:8]) + (", ..." if len(place) > 8 else "")
    first = f"{label}: {numbers}" if label else numbers
    return first if len(things) == 1 else f"{first}; {len(things) - 1} more"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_its_row_with_its_answer(readme: str, model: Florence2, task: Task) -> None:
    """Each task has a row with the demo checkpoint's answer."""
    assert task_row(task, model.run(EXAMPLE, task.token, GIVEN.get(task.name))) in readme


def test_the_picture_is_what_its_command_draws(readme: str, model: Florence2) -> None:
    """The command beside the picture draws it, except for rounding in another Pillow."""
    command = re.search(
        r"`FLORENCE_DTYPE=float32 \.venv/bin/florence run (\S+) (\w+) --model demo --draw (\S+)`", readme
    )
    assert command is not None
    picture, task, drawn = command.groups()
    assert f"]({drawn})" in readme
    again = model.run(ROOT / picture, task).draw(ROOT / picture)
    with Image.open(ROOT / drawn) as committed:
        assert committed.size == again.size
        assert np.asarray(ImageChops.difference(committed.convert("RGB"), again)).mean() < 1
    assert (ROOT / drawn).stat().st_size < 150_000


def test_the_typed_answer_that_is_shown_is_the_demo_checkpoints(readme: str, model: Florence2) -> None:
    """The shown typed answer is the demo checkpoint's, except for its times."""
    answer = model.run(PICTURE, "<OD>")
    (block,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    shown = TaskAnswer[Detections].model_validate_json(block)
    assert json.loads(block).keys() == TaskAnswer.model_fields.keys()
    assert isinstance(answer.result, Detections)
    for one, other in zip(shown.detections, answer.result.detections, strict=True):
        assert (one.label, one.box) == (other.label, other.box)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.original_score == pytest.approx(other.original_score, abs=1e-4)
    assert (shown.usage, shown.image_size, shown.checkpoint) == (
        answer.usage, answer.image_size, answer.checkpoint
    )  # fmt: skip
