"""Reads and checks annotation files in COCO's layout; each error names the field.

Besides COCO's own fields an annotation may have a `phrase` (or `description`), the `text` at that place
(COCO-Text's `utf8_string`), and a `region` to ask about instead of its box; a picture may have a `caption` to
ground, and LVIS's `neg_category_ids`, classes that are known to be absent. Knows nothing about tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, Field, PlainValidator, field_validator

from florence.errors import RequestError, quote
from florence.evaluation.files.json_file import read_json


def _id(value: object) -> int | str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise ValueError("an id is a whole number or a text")


Id = Annotated[int | str, PlainValidator(_id)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Extent = Annotated[float, Field(allow_inf_nan=False, ge=0)]
CocoBox = tuple[Number, Number, Extent, Extent]
"""x, y, width, height in pixels."""


class CocoImage(BaseModel):
    """A picture of the file."""

    id: Id
    file_name: str = Field(min_length=1)
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    caption: str | None = None
    neg_category_ids: list[Id] = []

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height; None unless the file has both."""
        return None if self.width is None or self.height is None else (self.width, self.height)


class CocoAnnotation(BaseModel):
    """An annotation of the file."""

    image_id: Id
    category_id: Id | None = None
    bbox: CocoBox | None = None
    region: CocoBox | None = None
    segmentation: Any = None
    iscrowd: int = Field(default=0, ge=0, le=1)
    caption: str | None = None
    phrase: str | None = Field(default=None, validation_alias=AliasChoices("phrase", "description"))
    text: str | None = Field(default=None, validation_alias=AliasChoices("text", "utf8_string"))

    @field_validator("segmentation")
    @classmethod
    def _check_outline(cls, value: Any) -> Any:
        """Polygons or a run-length code, as pycocotools accepts them; None if empty."""
        if isinstance(value, Mapping):
            counts, size = value.get("counts"), value.get("size")
            known = isinstance(counts, str) or _are_numbers(counts)
            if known and isinstance(size, list) and _are_numbers(size) and len(size) == 2:
                return value
        elif value is None or (isinstance(value, list) and all(map(_is_polygon, value))):
            return value or None
        raise ValueError(
            "must be polygons, each a list of 6 numbers or more, or an object with counts and size"
        )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int | float) and isfinite(n) for n in value)


def _is_polygon(value: Any) -> bool:
    return _are_numbers(value) and len(value) >= 6 and len(value) % 2 == 0


class CocoCategory(BaseModel):
    """A class of the file."""

    id: Id
    name: str = Field(min_length=1)


class CocoFile(BaseModel):
    """A file in COCO's layout."""

    images: list[CocoImage] = Field(min_length=1)
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory] = []


class CocoTruth:
    """A COCO file with its annotations by picture, and their indices for error messages.

    Raises `RequestError` where the file is malformed, an id is duplicate, or an annotation refers to a
    picture or category that is not in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = read_json(path, CocoFile)
        self._check_ids("images", [each.id for each in file.images])
        self._check_ids("categories", [each.id for each in file.categories])
        self.images = file.images
        self.categories = {each.id: each.name for each in file.categories}
        self._of: dict[int | str, list[tuple[int, CocoAnnotation]]] = {each.id: [] for each in file.images}
        for number, annotation in enumerate(file.annotations):
            if annotation.image_id not in self._of:
                raise self._wrong(number, "image_id", f"no picture has the id {quote(annotation.image_id)}")
            if annotation.category_id is not None and annotation.category_id not in self.categories:
                got = quote(annotation.category_id)
                raise self._wrong(number, "category_id", f"no category has the id {got}")
            self._of[annotation.image_id].append((number, annotation))

    def of(self, image: CocoImage) -> Iterator[tuple[int, CocoAnnotation]]:
        """A picture's annotations, each with its index in the file."""
        return iter(self._of[image.id])

    def need(self, number: int, annotation: CocoAnnotation, field: str) -> Any:
        """A field of an annotation. Raises `RequestError` where it is missing or blank."""
        value = getattr(annotation, field)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self._wrong(number, field, "is needed here, and missing or empty")
        return value

    def category(self, number: int, annotation: CocoAnnotation) -> str:
        """The name of the annotation's class. Raises `RequestError` where it has none."""
        return self.categories[self.need(number, annotation, "category_id")]

    def _wrong(self, number: int, field: str, reason: str) -> RequestError:
        return RequestError(f"{self.path}: annotations[{number}].{field}: {reason}")

    def _check_ids(self, place: str, ids: list[int | str]) -> None:
        (first, count), *_ = Counter(ids).most_common(1) or [(0, 0)]
        if count > 1:
            raise RequestError(f"{self.path}: {place}: the id {quote(first)} stands there {count} times")
