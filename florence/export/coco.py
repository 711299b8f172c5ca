"""Exports annotations as COCO: those of one picture, or a data set of many answers.

Boxes are COCO's x, y, width, height in pixels. Scores are kept, as in COCO's result files. Unlike YOLO and
Pascal VOC (`datasets`), COCO is not written by supervision: its `DetectionDataset.as_coco` (0.31) writes no
score and no text, numbers categories from 1 whatever the label map says, identifies pictures by the last part
of their paths, and traces outlines again from masks. Knows nothing about tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from florence.errors import RequestError, quote
from florence.export.annotation import Annotation, Drawable
from florence.export.geometry import area, coco_box, polygon_area

UNNAMED: Final = "object"  # the category of things without a label
_FORMS: Final = "ids by name ({'car': 1, 'tree': 2}), names in a list, or the categories of a COCO file"

LabelMap = Mapping[str, int] | Sequence[str] | Sequence[Mapping[str, Any]]
"""Ids by name; or names, numbered in order; or the `categories` of a COCO file."""


class Categories(dict[str, int]):
    """Ids by category; a category without one gets the next id. Passed to many calls, it keeps ids the same.

    `known`: ids that are assigned already, in any form of `LabelMap`. `first`: the first id: 1 in COCO, 0 in
    supervision.
    """

    def __init__(self, known: LabelMap = (), *, first: int = 1) -> None:
        """Raises `RequestError` where `known` is not a label map."""
        super().__init__(label_map(known, first=first))
        self._first = first

    def __missing__(self, name: str) -> int:
        number = self[name] = max(self.values(), default=self._first - 1) + 1
        return number

    @classmethod
    def of(cls, results: Iterable[Drawable], *, first: int = 1) -> Categories:
        """The categories of these answers or results, numbered alphabetically, so that their order does not
        matter."""
        names = {category_name(each) for result in results for each in result.annotations()}
        return cls(sorted(names), first=first)


def label_map(categories: LabelMap | None, *, first: int) -> Mapping[str, int]:
    """The ids by name; a mapping is returned as it is, so that the caller's `Categories` grows.

    `first`: the id of the first name in a sequence. Raises `RequestError` for None, for anything that is not
    a label map, and for duplicate names.
    """
    if categories is None:
        raise RequestError(
            "categories is missing: labels numbered in order of appearance would get other ids in the next "
            "picture. "
            f"For all pictures pass the same {_FORMS}, or one florence.export.coco.Categories(), which "
            "numbers new labels in order of appearance"
        )
    if isinstance(categories, Mapping):
        _check_ids(categories.items())
        return categories
    if isinstance(categories, str) or not isinstance(categories, Sequence):  # a set has no stable order
        raise RequestError(f"categories must be {_FORMS}, got {quote(categories)}")
    named = [
        (each.get("name"), each.get("id")) if isinstance(each, Mapping) else (each, number)
        for number, each in enumerate(categories, start=first)
    ]
    _check_ids(named)
    ids: dict[str, int] = {}
    for name, number in named:
        if ids.setdefault(str(name), int(number)) != number:  # type: ignore[arg-type]  # both are checked
            raise RequestError(f"categories names {quote(name)} twice")
    return ids


def _check_ids(named: Iterable[tuple[Any, Any]]) -> None:
    for name, number in named:
        if not isinstance(name, str) or type(number) is not int:
            raise RequestError(f"categories must be {_FORMS}, got {quote(name)} with the id {quote(number)}")


def coco_dataset(
    answers: Iterable[tuple[str, Drawable]], *, categories: LabelMap | None = None
) -> dict[str, Any]:
    """The answers, each with its picture's file name, as `images`, `annotations` and `categories`.

    `categories`: the label map, as in `Drawable.to_coco`; the data set contains all of it, so that its
    `categories` can be used for the next data set. Image ids count the answers from 1; use `map` with
    `ordered=True` if they must be the same each time:

        answers = client.map(paths, "object_detection", ordered=True)
        coco_dataset(answers, categories=["car", "tree"])

    Raises `RequestError` without a label map, for a label that it lacks, for a duplicate id, and where a
    picture's size is not known.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids = label_map(categories, first=1)
    for image_id, (file_name, answer) in enumerate(answers, start=1):
        if answer.pixel_size is None:
            raise RequestError(f"the size of {file_name!r} is not known; give parse_answer its image_size")
        width, height = answer.pixel_size
        images.append({"id": image_id, "file_name": str(file_name), "width": width, "height": height})
        annotations += coco_annotations(
            answer.annotations(), image_id=image_id, categories=ids, first_id=len(annotations) + 1
        )
    if len(set(ids.values())) < len(ids):
        raise RequestError("categories gives two names the same id, which a COCO data set can't hold")
    named = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": named}


def coco_annotations(
    annotations: Sequence[Annotation], *, image_id: int, categories: Mapping[str, int], first_id: int = 1
) -> list[dict[str, Any]]:
    """Each annotation as a COCO record. Raises `RequestError` for a category without an id.

    `segmentation` is empty where the model gave only a box. `text` is the text that was read there.
    """
    records: list[dict[str, Any]] = []
    for number, annotation in enumerate(annotations, start=first_id):
        polygons = [] if annotation.shape == "box" else [list(polygon) for polygon in annotation.polygons]
        covered = sum(map(polygon_area, polygons)) if polygons else area(annotation.bounds)
        record: dict[str, Any] = {
            "id": number,
            "image_id": image_id,
            "category_id": category_id(annotation, categories),
            "category_name": category_name(annotation),
            "bbox": coco_box(annotation.bounds),
            "area": covered,
            "segmentation": polygons,
            "iscrowd": 0,
        }
        if annotation.score is not None:
            record["score"] = annotation.score
        if annotation.category is not None:
            record["text"] = annotation.label
        records.append(record)
    return records


def category_name(annotation: Annotation) -> str:
    """The category of the annotation: its own, its label, or `UNNAMED`."""
    return annotation.category or annotation.label or UNNAMED


def category_id(annotation: Annotation, categories: Mapping[str, int]) -> int:
    """The id of the annotation's category. Raises `RequestError` where there is none."""
    name = category_name(annotation)
    try:
        return categories[name]
    except KeyError:
        raise RequestError(
            f"categories has no id for {name!r}; add it, or pass florence.export.coco.Categories(your ids), "
            "which numbers new categories"
        ) from None
