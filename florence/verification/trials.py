"""The trials for both sides: tasks, pictures and settings, with every setting explicit.

Knows nothing about how either side answers.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw

from florence.engine.request import GenerationOptions
from florence.types.tasks import TASKS, Input, Kind, Task

BEAMS: Final = (1, 3)
MAX_NEW_TOKENS, MAX_NEW_TOKENS_QUICK = 256, 48
_FORCED_LENGTH: Final = 24  # least tokens of these answers: enough for the n-gram rule to matter
_SEARCHES: Final[tuple[dict[str, Any], ...]] = (
    {"num_beams": 1, "min_new_tokens": _FORCED_LENGTH},
    {"num_beams": 3, "min_new_tokens": _FORCED_LENGTH, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "early_stopping": False, "length_penalty": 1.0},
    {"num_beams": 4, "early_stopping": False, "length_penalty": 2.0},
    {"num_beams": 5, "early_stopping": "never", "length_penalty": -1.0, "no_repeat_ngram_size": 0},
)
"""Searches besides the checkpoint's own: the settings that differ."""
PLAIN: Final = next(task for task in TASKS.values() if task.kind is Kind.TEXT and task.input is Input.NONE)
"""A task that needs only a picture, used for other searches and for speeds."""


class Part(StrEnum):
    """The part of the report that a trial belongs to."""

    GREEDY = "tasks, 1 beam"
    BEAMS = "tasks, 3 beams"
    SEARCHES = "other searches"


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture, and its name in the report."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Trial:
    """One task on one picture with all settings. `text`: the task's example for tasks that take a text or a
    region, else None."""

    part: Part
    picture: Sample
    task: Task
    options: GenerationOptions

    @property
    def text(self) -> str | None:
        return self.task.example

    @property
    def prompt(self) -> str:
        """The sentence that the model reads."""
        return TASKS.build_prompt(self.task, self.text)

    def __str__(self) -> str:
        options = self.options
        words = [
            self.task.token,
            self.picture.name,
            f"{options.num_beams} beam{'s' * (options.num_beams > 1)}",
        ]
        if self.part is Part.SEARCHES:
            words += [f"early_stopping {options.early_stopping}", f"length_penalty {options.length_penalty}"]
            words += [f"min_new_tokens {options.min_new_tokens}", f"n-grams {options.no_repeat_ngram_size}"]
        return ", ".join(words)


def make_trials(pictures: Sequence[Sample], own: Mapping[str, Any], max_new_tokens: int) -> list[Trial]:
    """The fifteen tasks on each picture with 1 and 3 beams, and other searches on the first one.

    `own`: the checkpoint's settings, by the names of `GenerationOptions`; `max_new_tokens`: most tokens of an
    answer.
    """
    usual = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": 0,
        "no_repeat_ngram_size": own["no_repeat_ngram_size"],
        "early_stopping": own["early_stopping"],
        "length_penalty": own["length_penalty"],
    }
    parts = zip((Part.GREEDY, Part.BEAMS), BEAMS, strict=True)
    asked = [
        Trial(part, picture, task, GenerationOptions(**usual, num_beams=beams))
        for part, beams in parts
        for picture in pictures
        for task in TASKS.values()
    ]
    short = usual | {"max_new_tokens": min(max_new_tokens, 2 * _FORCED_LENGTH)}
    for changes in _SEARCHES:
        options = short | changes
        options["min_new_tokens"] = min(options["min_new_tokens"], options["max_new_tokens"])
        asked.append(Trial(Part.SEARCHES, pictures[0], PLAIN, GenerationOptions(**options)))
    return asked


def bundled_pictures() -> list[Sample]:
    """Two of the pictures in the repository's `data/`, which are part of the package."""
    folder = importlib.resources.files("florence.verification") / "pictures"
    found = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".jpg")), key=lambda file: file.name
    )
    return [Sample(file.name, file.read_bytes()) for file in found]


def own_pictures(paths: Sequence[str]) -> list[Sample]:
    """The files at these paths."""
    return [Sample(Path(path).name, Path(path).read_bytes()) for path in paths]


def variants(pictures: Sequence[Sample], count: int) -> list[Sample]:
    """`count` pictures that differ in a corner, so that no side can use a cache."""
    made = []
    for number in range(count):
        source = pictures[number % len(pictures)]
        image = Image.open(BytesIO(source.data)).convert("RGB")
        ImageDraw.Draw(image).rectangle((0, 0, 8 + number, 8), fill=(7 * number % 256, 90, 160))
        data = BytesIO()
        image.save(data, "PNG")
        made.append(Sample(f"{source.name}, variant {number + 1}", data.getvalue()))
    return made
