"""A fake for tests of `florence bulk`: it answers with the picture's name, at once or after a delay.

As a program it runs `florence` with that fake in place of a service: `python tests/bulk_runs.py SECONDS bulk
...`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import QuestionOutcome
from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.results import Detection, Detections, JsonValue, Tags, Text
from florence.types.tasks import Kind, Task


def answer(task: Task, said: str = "", size: tuple[int, int] = (48, 32)) -> TaskAnswer[Any]:
    """An answer of the task's kind: texts contain `said`, boxes have two labels."""
    results = {
        Kind.TEXT: Text(text=said, score=0.5),
        Kind.TAGS: Tags(tags=["a", said], text=f"a, {said}"),
        Kind.JSON: JsonValue(value={"said": said, "none": None}, text=f'{{"said": "{said}", "none": null}}'),
    }
    boxes = [Detection(label=label, box=(2, 3, 20, 21), score=0.9) for label in ("tree", "car")]
    return TaskAnswer[Any](
        task=task.token,
        result=results.get(task.kind, Detections(detections=boxes)),
        image_size=ImageSize(width=size[0], height=size[1]),
        finish_reason="stop",
        usage=Usage(picture_tokens=1, prompt_tokens=2, generated_tokens=3),
        timings=Timings(queue_s=0, encode_s=0, decode_s=0, total_s=0),
        checkpoint="echo",
    )


def echo(item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
    """Answer at once, with the picture's name."""
    return [answer(each.task, item.picture) for each in questions]


def main() -> int:
    """Run `florence` with a fake that takes the first argument's number of seconds for an answer."""
    from florence.cli import bulk, main

    wait_s = float(sys.argv[1])

    def slow_echo(item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
        time.sleep(wait_s)
        return echo(item, questions)

    @contextmanager
    def open_asker(arguments: argparse.Namespace, stopped: object) -> Iterator[Any]:
        yield slow_echo

    bulk.open_asker = open_asker  # type: ignore[assignment]
    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
