"""`florence load-data`: pictures as input for NVIDIA's perf_analyzer.

A load_data_<TASK>.json for each task, in the format of its --input-data: a list of requests, each with its
inputs' names, contents and shapes (without the batch axis). A picture is base64 text, which the v2 endpoint
accepts.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence.cli.telling import list_pictures
from florence.errors import RequestError
from florence.images.headers import is_picture
from florence.types.tasks import TASKS, TRITON_TASKS, Input, Task


def write_load_data(arguments: argparse.Namespace) -> int:
    """`florence load-data`."""
    tasks = [TASKS.read(name) for name in arguments.task or TRITON_TASKS]
    pictures = [_picture(path) for path in list_pictures(arguments.sources)]
    contents = {task: load_data(pictures, task, arguments.text) for task in tasks}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for task, content in contents.items():
        path = arguments.out / f"load_data_{task.token.strip('<>')}.json"
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
        print(path)
    return 0


def _picture(path: str) -> bytes:
    data = Path(path).read_bytes()
    if not is_picture(data):
        raise RequestError(f"{path} is not a picture in a known format")
    return data


def load_data(pictures: Sequence[bytes], task: Task, text: str | None) -> dict[str, Any]:
    """A request for each picture. `text`: the text or region of tasks that take one; None: their example."""
    inputs = {"TASK_PROMPT": task.token}
    if task.input is not Input.NONE:
        inputs["TEXT_PROMPT"] = text or task.example or ""
    return {"data": [_request(picture, inputs) for picture in pictures]}


def _request(picture: bytes, inputs: dict[str, str]) -> dict[str, Any]:
    values = {"INPUT_IMAGE": base64.b64encode(picture).decode("ascii"), **inputs}
    return {name: {"content": [value], "shape": [1]} for name, value in values.items()}
