"""Writes perf_analyzer's input data for a picture: `python -m florence.demo.load_data PICTURE --out DIR`.

One load_data_<TASK>.json for each of the seed's nine tasks, in the format of NVIDIA's --input-data: a list of
inputs by name, each with content and shape (without the batch axis). The picture goes as the v2 endpoint
takes it, base64 text, so it is an ordinary string here. Knows nothing about any model.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any, Final

from florence.errors import FlorenceError
from florence.tasks import Input, get_task

TASKS: Final = (
    "<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>", "<OD>",
    "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<OCR>", "<OCR_WITH_REGION>",
)  # fmt: skip


def load_data(picture: bytes, token: str, text: str | None) -> dict[str, Any]:
    """One request's inputs. TaskError for an unknown task or a text that is missing."""
    inputs = {"INPUT_IMAGE": base64.b64encode(picture).decode("ascii"), "TASK_PROMPT": get_task(token).token}
    if get_task(token).input is Input.TEXT and text is not None:
        inputs["TEXT_PROMPT"] = text
    return {"data": [{name: {"content": [value], "shape": [1]} for name, value in inputs.items()}]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument(
        "--text", default="a red star and a blue circle", help="the caption that grounding takes"
    )
    arguments = parser.parse_args()
    try:
        picture = arguments.picture.read_bytes()
        arguments.out.mkdir(parents=True, exist_ok=True)
        for token in TASKS:
            path = arguments.out / f"load_data_{token.strip('<>')}.json"
            path.write_text(json.dumps(load_data(picture, token, arguments.text)) + "\n")
    except (OSError, FlorenceError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
