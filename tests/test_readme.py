"""The README says what the program does: its tables, its files, its pictures and its library example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageChops
from serving import ROOT, Server

from florence import Florence2
from florence.answers.answer import Answer
from florence.settings import PREFIX, Settings
from florence.types.answer import TaskAnswer
from florence.types.results import Detections, OcrRegions, Segmentation, Text
from florence.types.tasks import TASKS, Input, Kind, Task

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
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> Iterator[Florence2]:
    with Florence2.load("demo", device="cpu", dtype="float32") as loaded:
        yield loaded


def task_row(task: Task, answer: Answer) -> str:
    given = GIVEN.get(task.name)
    taken = INPUTS[task.input]
    if given is not None:
        taken += f": {given if isinstance(given, str) else ', '.join(map(str, given))}"
    return f"| `{task.token}` | `/{task.name}` | {taken} | {KINDS[task.kind]} | {example(answer)} |"


def example(answer: Answer) -> str:
    """A text, or the first of the things that were found, and how many more there are."""
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
    """The example is what the demo checkpoint answers."""
    assert task_row(task, model.run(EXAMPLE, task.token, GIVEN.get(task.name))) in readme


def test_the_picture_is_what_its_command_draws(readme: str, model: Florence2) -> None:
    """The command beside it names picture and task; drawn again, it is the same but for another Pillow's last
    bits."""
    command = re.search(
        r"`FLORENCE_DTYPE=float32 florence run (\S+) (\w+) --model demo --draw (\S+)`", readme
    )
    assert command is not None
    picture, task, drawn = command.groups()
    assert f"]({drawn})" in readme
    again = model.run(ROOT / picture, task).draw(ROOT / picture)
    with Image.open(ROOT / drawn) as committed:
        assert committed.size == again.size
        assert np.asarray(ImageChops.difference(committed.convert("RGB"), again)).mean() < 1
    assert (ROOT / drawn).stat().st_size < 150_000


def test_the_answers_that_are_shown_are_the_demo_checkpoints(readme: str, model: Florence2) -> None:
    """The typed one, what the program that was written for Triton prints, and the end of the stream."""
    answer = model.run(PICTURE, "<OD>")
    (block,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    shown = TaskAnswer[Detections].model_validate_json(block)
    assert isinstance(answer.result, Detections)
    for one, other in zip(shown.detections, answer.result.detections, strict=True):
        assert (one.label, one.box) == (other.label, other.box)
        assert one.score == pytest.approx(other.score, abs=1e-4)
    assert (shown.usage, shown.image_size, shown.checkpoint) == (
        answer.usage, answer.image_size, answer.checkpoint
    )  # fmt: skip
    original = answer.florence()["<OD>"]
    assert (
        f"{{'<OD>': {{'bboxes': [{original['bboxes'][0]}, ...], 'labels': {original['labels']}}}}}" in readme
    )
    caption = json.dumps(model.run(PICTURE, "<CAPTION>", num_beams=1).florence())
    assert f'"PARSED_JSON":{json.dumps(caption)}}}' in readme


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


@pytest.mark.slow
def test_every_metric_that_is_named_is_there(readme: str, fake_server: Server) -> None:
    """In the /metrics of a service that has just started."""
    named = set(re.findall(r"`((?:florence|nv_inference|bentoml_service)_[a-z_]+)`", readme))
    assert len(named) > 10
    text = httpx.get(f"{fake_server.url}/metrics").text
    there = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    there |= {f"{name}_total" for name in there}
    assert named <= there


def test_every_file_and_target_that_is_named_exists(readme: str) -> None:
    for path in re.findall(r"\b(?:data|florence|benchmarks)/[\w./]*\w", readme):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([\w-]+)`", readme))
    assert "image-check" in targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def anchor(title: str) -> str:
    """What a link to a section names."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_section_that_is_linked_exists(readme: str) -> None:
    anchors = {anchor(title) for title in re.findall(r"^#+ (.*)$", readme, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", readme)) <= anchors


def test_the_contents_list_every_section_in_its_order(readme: str) -> None:
    """By its title, and with a link to it."""
    (contents,) = [part for part in readme.split("\n\n") if "](#" in part and " ·\n" in part]
    titles = re.findall(r"^## (.*)$", readme, re.MULTILINE)
    assert re.findall(r"\[(.+?)\]\(#([\w-]+)\)", contents) == [(title, anchor(title)) for title in titles]


def test_the_library_example_runs(readme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, from the project's folder."""
    monkeypatch.chdir(ROOT)
    codes = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (example,) = [code for code in codes if "Florence2.load" in code]
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["answer"]
