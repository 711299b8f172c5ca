"""What an answer points at in a picture, ready to be drawn or handed on, as COCO or to supervision.

Knows nothing about tasks, schemas or where answers come from: a result says what its marks are. Pillow comes
with the first drawing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import supervision
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Mark:
    """One place in a picture.

    outlines: its closed parts, each x1, y1, x2, y2, ... in pixels. category: what COCO files it under; the
    label where nothing else is said. shape: "box", the outline is only the box around it; "quad", it is one
    quadrilateral, clockwise; "area", what is inside the outlines belongs to it, and is tinted.
    """

    label: str
    score: float | None
    outlines: Sequence[Sequence[float]]
    shape: Literal["box", "quad", "area"]
    category: str | None = None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom; sorted, whatever the model wrote."""
        xs = [x for outline in self.outlines for x in outline[0::2]]
        ys = [y for outline in self.outlines for y in outline[1::2]]
        return min(xs), min(ys), max(xs), max(ys)


def box_outline(box: tuple[float, float, float, float]) -> list[float]:
    """The four corners of x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


class Drawable(ABC):
    """A result that can be shown on its picture."""

    @abstractmethod
    def marks(self) -> list[Mark]:
        """The places that the result names, in its order; a text names none."""

    def caption(self) -> str:
        """What stands under the picture."""
        return ""

    def draw(
        self,
        image: Image.Image | bytes | str | os.PathLike[str],
        *,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """A copy of the picture with outlines, labels and scores on it; a text stands in a strip below it.

        `image`: the picture that was asked about, as a PIL image in its seen orientation, or as bytes or a
        path. `font`: a TrueType file for labels beyond Latin letters, which Pillow's own font lacks. Raises
        ImageError.
        """
        from florence.export.drawing import draw_marks

        return draw_marks(image, self.marks(), self.caption(), font)

    def to_coco(
        self, *, image_id: int = 1, categories: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """The marks as COCO annotations, numbered from 1; a text gives none.

        `categories`: ids by name. Without it they are numbered from 1 as they come; each annotation says its
        `category_name`. `florence.export.coco.coco_dataset` makes a whole data set of many answers.
        """
        from florence.export.coco import coco_annotations, number_categories

        marks = self.marks()
        if categories is None:
            categories = number_categories(marks)
        return coco_annotations(marks, image_id=image_id, categories=categories)

    def to_supervision(
        self, *, image_size: tuple[int, int] | None = None, categories: Mapping[str, int] | None = None
    ) -> supervision.Detections:
        """The marks as `supervision.Detections`, in their order; a text gives an empty one.

        `xyxy` holds sorted boxes, `confidence` the scores, `data["class_name"]` the labels (of text that was
        read: the words), `data["xyxyxyxy"]` quads. `class_id` is as `categories` says, else counted from 0 as
        they come. `image_size`: width and height of the picture, needed where outlines become masks
        [N, H, W]; an answer's own `to_supervision` knows it. Raises MissingLibrary without the extra
        "supervision", RequestError without a needed size.
        """
        from florence.export.detections import to_detections

        return to_detections(self.marks(), image_size, categories)


class DrawableAnswer:
    """An answer, which knows its picture's size beside its result, does what the result does."""

    if TYPE_CHECKING:
        result: Any  # a Drawable; typed by the answer
        image_size: Any

    def draw(
        self,
        image: Image.Image | bytes | str | os.PathLike[str],
        *,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """The result on its picture: see `Drawable.draw`."""
        drawn: Image.Image = self.result.draw(image, font=font)
        return drawn

    def to_coco(
        self, *, image_id: int = 1, categories: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """The result as COCO annotations: see `Drawable.to_coco`."""
        annotations: list[dict[str, Any]] = self.result.to_coco(image_id=image_id, categories=categories)
        return annotations

    def to_supervision(self, *, categories: Mapping[str, int] | None = None) -> supervision.Detections:
        """The result as `supervision.Detections`, masks in the picture's size: see
        `Drawable.to_supervision`."""
        size = (self.image_size.width, self.image_size.height)
        detections: supervision.Detections = self.result.to_supervision(
            image_size=size, categories=categories
        )
        return detections
