"""Writes the examples of the API's document: `python tests/api_examples.py`.

The picture is one of data/, small enough to stand in a document; the answers are the demo checkpoint's.
"""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any, Final

from PIL import Image
from serving import ROOT

from florence import Florence2
from florence.server.typed.endpoints import task_answer
from florence.server.typed.examples import ANSWERS_PATH, PICTURE_PATH
from florence.types.tasks import TASKS, Input, Task

SIZE: Final = (144, 161)
SCENE: Final = ROOT / "data" / "scene_04.jpg"
TEXTS: Final = {"<CAPTION_TO_PHRASE_GROUNDING>": "a yellow triangle and a red moon"}
TEXT: Final = "a yellow triangle"
WORD: Final = [50, 80, 112, 101]
TRIANGLE: Final = [99, 97, 127, 124]


def small_picture() -> bytes:
    """`SCENE` resized to `SIZE`, as a JPEG."""
    file = BytesIO()
    with Image.open(SCENE) as scene:
        scene.resize(SIZE, Image.Resampling.LANCZOS).save(file, "JPEG", quality=60, optimize=True)
    return file.getvalue()


def request_of(task: Task) -> dict[str, Any]:
    """The fields of a request for this task, without the picture."""
    if task.input is Input.TEXT:
        return {"text": TEXTS.get(task.token, TEXT)}
    if task.input is Input.REGION:
        return {"region": WORD if "ocr" in task.name else TRIANGLE}
    return {}


def answers(model: Florence2, picture: bytes) -> dict[str, Any]:
    """The examples of all tasks and of /analyze, by the endpoints' names."""
    made: dict[str, Any] = {}
    for task in TASKS.values():
        request = request_of(task)
        given = request.get("text") or request.get("region")
        made[task.name] = {"request": request, "answer": body(model.run(picture, task, given))}
    first, second = TASKS["<CAPTION>"].name, TASKS["<CAPTION_TO_PHRASE_GROUNDING>"].name
    both = [body(answer) for answer in model.analyze(picture, [first, (second, TEXT)])]
    tasks = [first, {"task": second, "text": TEXT}]
    made["analyze"] = {"request": {"tasks": tasks}, "answer": {"answers": both}}
    return made


def body(answer: Any) -> dict[str, Any]:
    """The answer as its endpoint sends it, with rounded numbers."""
    content = json.loads(
        task_answer(answer).model_dump_json(), parse_float=lambda text: round(float(text), 4)
    )
    assert isinstance(content, dict)
    return content


def main() -> None:
    """Write the picture and the demo checkpoint's answers."""
    PICTURE_PATH.write_bytes(small_picture())
    with Florence2.load("demo", device="cpu", dtype="float32") as model:
        made = answers(model, PICTURE_PATH.read_bytes())
    ANSWERS_PATH.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
