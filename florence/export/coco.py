"""Marks as COCO: annotations of one picture, or a data set of many answers.

Boxes are COCO's x, y, width, height in pixels. Scores are kept, as in COCO's files of results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from florence.export.annotation import Drawable, Mark

UNNAMED: Final = "object"  # the category of things without a label


class Size(Protocol):
    """Of a picture, in pixels."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class Answered(Protocol):
    """What is needed of an answer."""

    @property
    def result(self) -> Drawable: ...
    @property
    def image_size(self) -> Size: ...


def coco_dataset(answers: Iterable[tuple[str, Answered]]) -> dict[str, Any]:
    """The answers, each with its picture's file name, as `images`, `annotations` and `categories`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for image_id, (file_name, answer) in enumerate(answers, start=1):
        size, marks = answer.image_size, answer.result.marks()
        images.append({"id": image_id, "file_name": file_name, "width": size.width, "height": size.height})
        categories = number_categories(marks, categories)
        first_id = len(annotations) + 1
        annotations += coco_annotations(marks, image_id=image_id, categories=categories, first_id=first_id)
    named = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": named}


def number_categories(marks: Sequence[Mark], known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Ids by category: the known ones, then the marks' own as they come."""
    categories = dict(known or {})
    for mark in marks:
        categories.setdefault(category_name(mark), max(categories.values(), default=0) + 1)
    return categories


def coco_annotations(
    marks: Sequence[Mark], *, image_id: int, categories: Mapping[str, int], first_id: int = 1
) -> list[dict[str, Any]]:
    """One annotation for each mark; KeyError for a category without an id.

    `segmentation` is empty where the model gave only a box. `text` is what was read there.
    """
    annotations: list[dict[str, Any]] = []
    for number, mark in enumerate(marks, start=first_id):
        left, top, right, bottom = mark.bounds
        outlines = [] if mark.shape == "box" else [list(outline) for outline in mark.outlines]
        area = sum(map(polygon_area, outlines)) if outlines else (right - left) * (bottom - top)
        annotation: dict[str, Any] = {
            "id": number,
            "image_id": image_id,
            "category_id": categories[category_name(mark)],
            "category_name": category_name(mark),
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
            "segmentation": outlines,
            "iscrowd": 0,
        }
        if mark.score is not None:
            annotation["score"] = mark.score
        if mark.category is not None:
            annotation["text"] = mark.label
        annotations.append(annotation)
    return annotations


def category_name(mark: Mark) -> str:
    """What the mark is filed under."""
    return mark.category or mark.label or UNNAMED


def polygon_area(outline: Sequence[float]) -> float:
    """Area of a polygon x1, y1, x2, y2, ... that does not cross itself, by the shoelace formula."""
    points = list(zip(outline[0::2], outline[1::2], strict=True))
    following = [*points[1:], points[0]]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, following, strict=True))) / 2
