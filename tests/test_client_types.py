"""The client's types for a type checker: each task's method has its own type of answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ROOT

from florence.client.tasks import TaskMethods
from florence.types.tasks import TASKS, Input, Kind

PROGRAM = """
from PIL import Image
from florence.client import AsyncClient, Client

def ask(client: Client, picture: Image.Image) -> None:
    answer = client.object_detection("street.jpg")
    reveal_type(answer)  # TaskAnswer[Detections]
    reveal_type(answer.detections)  # list[Detection]
    reveal_type(answer.detections[0].box)  # tuple[float, float, float, float]
    reveal_type(answer.draw(picture))  # Image
    reveal_type(answer.to_coco(categories=["car"]))  # list[dict[str, Any]]
    reveal_type(client.caption(picture).text)  # str
    reveal_type(client.ocr_with_region(b"").regions)  # list[OcrRegion]
    reveal_type(client.region_to_segmentation(b"", (1, 2, 3, 4)).instances)  # list[Instance]
    reveal_type(client.open_vocabulary_detection(b"", "a car").result)  # Detections | Segmentation
    reveal_type(client.info().device)  # str
    reveal_type(client.prompt(b"", "x").text)  # str
    reveal_type(client.prompt(b"", "x", answer_as="tags").tags)  # list[str]
    reveal_type(client.prompt(b"", "x", answer_as="json"))  # TaskAnswer[JsonValue]
    reveal_type(client.prompt(b"", "x", answer_as="boxes").detections)  # list[Detection]
    reveal_type(client.task("t", b"", answer_as="quads").regions)  # list[OcrRegion]
    reveal_type(client.task("t", b"").task)  # str
    client.prompt(b"", "x", answer_as="xml")  # error
    client.caption(picture).detections  # error
    client.open_vocabulary_detection(b"", "a car").detections  # error
    client.run(picture, "<OD>").detections  # error
    client.caption(picture, beams=1)  # error
    client.region_to_ocr(picture)  # error

async def wait(client: AsyncClient) -> None:
    reveal_type((await client.object_detection("street.jpg")).detections)  # list[Detection]
    reveal_type((await client.prompt(b"", "x", answer_as="tags")).tags)  # list[str]
    async for _, answer in client.map(["street.jpg"], "caption"):
        reveal_type(answer.task)  # str
"""


def test_the_methods_are_the_tables() -> None:
    """The client has one method for each task, with the input and answer type of the table, and no others."""
    inputs = {Input.NONE: "PlainMethod", Input.TEXT: "TextMethod", Input.REGION: "RegionMethod"}
    answers = {
        Kind.TEXT: "TextT",
        Kind.BOXES: "BoxesT",
        Kind.QUADS: "QuadsT",
        Kind.POLYGONS: "PolygonsT",
        Kind.BOXES_OR_POLYGONS: "FoundT",
    }
    declared = {
        task.name: f"{inputs[task.input]}[{answers[task.kind]}]" for task in TASKS.values()
    }  # in the table's order
    shown = [item for item in TaskMethods.__annotations__.items() if not item[0].startswith("_")]
    assert shown == list(declared.items())
    for task in TASKS.values():
        method = getattr(TaskMethods, task.name)
        assert method.task is task
        assert type(method).__name__ == inputs[task.input]
        assert method.__doc__ == task.summary


@pytest.mark.slow
def test_mypy_sees_each_tasks_own_answer(tmp_path: Path) -> None:
    """mypy in strict mode reveals the types, and finds the errors, that the program's comments name."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", str(file)],
        cwd=ROOT,  # this folder has mypy's settings and the cache of `make types`
        capture_output=True,
        text=True,
        check=False,
    )
    seen: dict[int, str] = {}
    for line, said in re.findall(r"^\S+program\.py:(\d+): (.*)$", ran.stdout, re.MULTILINE):
        revealed = re.search(r'Revealed type is "(.*)"', said)
        seen[int(line)] = "error" if revealed is None else re.sub(r"\b(?:\w+\.)+", "", revealed[1])
    wanted = {
        number: line.partition("  # ")[2]
        for number, line in enumerate(PROGRAM.splitlines(), start=1)
        if "  # " in line
    }
    assert seen == wanted, ran.stdout + ran.stderr
