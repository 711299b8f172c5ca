"""The questions of single tasks as COCO data sets, in the layouts that `florence evaluate` reads.

They have a phrase for each annotation (grounding, referring), a region to ask about (segmentation), or the
classes that are present or known to be absent (open vocabulary: each phrase is a class). Knows nothing about
how scenes are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from florence.demo.world.coco import coco_head
from florence.demo.world.ground_truth import Question
from florence.demo.world.scenes import Scene, Thing
from florence.export.geometry import coco_box
from florence.types.regions import locations_to_pixels

AskedScene = tuple[str, Scene, Sequence[Question]]
"""A picture's file name, its scene, and the questions about it."""

_LOCATION = re.compile(r"<loc_(\d+)>")
_LOCATIONS = re.compile(r"(?:<loc_\d+>)+")


def coco_tasks(scenes: Sequence[AskedScene]) -> dict[str, dict[str, Any]]:
    """The data sets of `TASK_FILES`, by name."""
    return {name: _data_set(scenes, task, note) for name, (task, note) in TASK_FILES.items()}


def _data_set(scenes: Sequence[AskedScene], task: str, note: _Note) -> dict[str, Any]:
    head = coco_head([(name, scene) for name, scene, _ in scenes])
    phrases: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for image, (_, scene, questions) in zip(head["images"], scenes, strict=True):
        for question in questions:
            if question.task == task:
                things = [scene.things[index] for index in question.things]
                fields = note(image, question, scene, phrases)
                for thing, own in zip(things, fields, strict=True):
                    place = {"id": len(annotations) + 1, "image_id": image["id"], **_place(thing)}
                    annotations.append({**place, **own})
    categories = [{"id": number, "name": phrase} for phrase, number in phrases.items()]
    return {**head, "annotations": annotations, "categories": categories}


def _place(thing: Thing) -> dict[str, Any]:
    return {
        "bbox": coco_box(thing.box),
        "segmentation": [thing.outline.ravel().tolist()],
        "iscrowd": 0,
    }


_Note = Callable[[dict[str, Any], Question, Scene, dict[str, int]], Iterable[dict[str, Any]]]
"""Adds a question's fields to its picture, and returns the additional fields of each thing's annotation."""


def _grounding(image: dict[str, Any], question: Question, *_: object) -> list[dict[str, Any]]:
    image["caption"] = question.text
    return [{"phrase": phrase} for phrase in _LOCATIONS.split(question.answer)[:-1]]


def _referring(_: object, question: Question, *__: object) -> list[dict[str, Any]]:
    return [{"phrase": question.text}]


def _region(_: object, question: Question, scene: Scene, phrases: dict[str, int]) -> list[dict[str, Any]]:
    bins = [int(number) for number in _LOCATION.findall(question.text or "")]
    x1, y1, x2, y2 = locations_to_pixels(bins, (scene.width, scene.height))
    shapes = [scene.things[index].shape for index in question.things]
    numbers = [phrases.setdefault(shape, len(phrases) + 1) for shape in shapes]
    return [{"region": [x1, y1, x2 - x1, y2 - y1], "category_id": number} for number in numbers]


def _named(
    image: dict[str, Any], question: Question, scene: Scene, phrases: dict[str, int]
) -> list[dict[str, Any]]:
    number = phrases.setdefault(question.text or "", len(phrases) + 1)
    if not question.things:
        image["neg_category_ids"] = [number]
    return [{"category_id": number} for _ in question.things]


TASK_FILES: Final[Mapping[str, tuple[str, _Note]]] = MappingProxyType(
    {
        "grounding": ("<CAPTION_TO_PHRASE_GROUNDING>", _grounding),
        "referring": ("<REFERRING_EXPRESSION_SEGMENTATION>", _referring),
        "segmentation": ("<REGION_TO_SEGMENTATION>", _region),
        "open_vocabulary": ("<OPEN_VOCABULARY_DETECTION>", _named),
    }
)
"""Name of a data set -> its task, and the function that adds fields."""
