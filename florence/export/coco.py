"""Annotations as COCO: of one picture, or a data set of many answers.

Boxes are COCO's x, y, width, height in pixels. Scores are kept, as in COCO's result files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from florence.errors import RequestError
from florence.export.annotation import Annotation, DrawableAnswer

UNNAMED: Final = "object"  # the category of things without a label


class Categories(dict[str, int]):
    """Ids by category; a category without one gets the next id. Passed to many calls, it keeps ids the same.

    first: the first id: 1 in COCO, 0 in supervision.
    """

    def __init__(self, known: Mapping[str, int] | None = None, *, first: int = 1) -> None:
        super().__init__(known or {})
        self._first = first

    def __missing__(self, name: str) -> int:
        number = self[name] = max(self.values(), default=self._first - 1) + 1
        return number


def coco_dataset(
    answers: Iterable[tuple[str, DrawableAnswer]], *, categories: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The answers, each with its picture's file name, as `images`, `annotations` and `categories`.

    `categories`: ids by name; None: numbered from 1 in their order. Image ids count the answers from 1, so
    take `map`'s with `ordered=True` where they have to be the same each time:

        coco_dataset(client.map(paths, "object_detection", ordered=True))
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids = Categories() if categories is None else categories
    for image_id, (file_name, answer) in enumerate(answers, start=1):
        if answer.pixel_size is None:
            raise RequestError(f"the size of {file_name!r} is not known; give parse_answer its image_size")
        width, height = answer.pixel_size
        images.append({"id": image_id, "file_name": str(file_name), "width": width, "height": height})
        annotations += coco_annotations(
            answer.result.annotations(), image_id=image_id, categories=ids, first_id=len(annotations) + 1
        )
    named = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": named}


def coco_annotations(
    annotations: Sequence[Annotation], *, image_id: int, categories: Mapping[str, int], first_id: int = 1
) -> list[dict[str, Any]]:
    """Each annotation as COCO's record. Raises RequestError for a category without an id.

    `segmentation` is empty where the model gave only a box. `text` is what was read there.
    """
    records: list[dict[str, Any]] = []
    for number, annotation in enumerate(annotations, start=first_id):
        left, top, right, bottom = annotation.bounds
        polygons = [] if annotation.shape == "box" else [list(polygon) for polygon in annotation.polygons]
        area = sum(map(polygon_area, polygons)) if polygons else (right - left) * (bottom - top)
        record: dict[str, Any] = {
            "id": number,
            "image_id": image_id,
            "category_id": category_id(annotation, categories),
            "category_name": category_name(annotation),
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
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
    """The id of the annotation's category. Raises RequestError where there is none."""
    name = category_name(annotation)
    try:
        return categories[name]
    except KeyError:
        raise RequestError(
            f"categories has no id for {name!r}; add it, or pass coco.Categories(your ids), which numbers "
            "new categories"
        ) from None


def polygon_area(polygon: Sequence[float]) -> float:
    """Area of a polygon x1, y1, x2, y2, ... that does not cross itself, by the shoelace formula."""
    points = list(zip(polygon[0::2], polygon[1::2], strict=True))
    following = [*points[1:], points[0]]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, following, strict=True))) / 2
