"""Annotations: the places in a picture that a result names, ready to be drawn or exported.

Knows nothing about tasks or where answers come from: a result says what its annotations are. Pillow is
imported with the first drawing.
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
class Annotation:
    """One place in a picture.

    polygons: its closed parts, each x1, y1, x2, y2, ... in pixels. category: its category in COCO; None: the
    label. shape: "box": the polygon is only the box around it; "quad": it is one quadrilateral, clockwise;
    "area": it covers the inside of its polygons, which is tinted.
    """

    label: str
    score: float | None
    polygons: Sequence[Sequence[float]]
    shape: Literal["box", "quad", "area"]
    category: str | None = None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom; sorted, also where the model swapped corners."""
        xs = [x for polygon in self.polygons for x in polygon[0::2]]
        ys = [y for polygon in self.polygons for y in polygon[1::2]]
        return min(xs), min(ys), max(xs), max(ys)


def box_polygon(box: tuple[float, float, float, float]) -> list[float]:
    """The four corners of x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


class Drawable(ABC):
    """A result that can be drawn on its picture and exported."""

    @abstractmethod
    def annotations(self) -> list[Annotation]:
        """The places that the result names, in its order; a text names none."""

    def caption(self) -> str:
        """The text under the picture."""
        return ""

    @property
    def pixel_size(self) -> tuple[int, int] | None:
        """Width and height of the picture; None where they are not known."""
        return None

    def draw(
        self,
        image: Image.Image | bytes | str | os.PathLike[str],
        *,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """A copy of the picture with polygons, labels and scores on it; a text stands in a strip below it.

        `image`: the picture of the request, as a PIL image in its seen orientation, or as bytes or a path.
        `font`: a TrueType file for labels beyond Latin letters, which Pillow's own font lacks. Raises
        ImageError.
        """
        from florence.export.drawing import draw_annotations

        return draw_annotations(image, self.annotations(), self.caption(), font)

    def to_coco(
        self, *, image_id: int = 1, categories: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO annotations, numbered from 1; a text gives none.

        `categories`: ids by name. Without it each call numbers its labels from 1 in their order, so an id
        means another label in the next picture. To keep ids over many pictures, pass the same mapping each
        time: your own, or one `coco.Categories()`, which gives new labels the next id.
        `florence.export.coco.coco_dataset` makes a whole data set of many answers.
        """
        from florence.export.coco import Categories, coco_annotations

        ids = Categories() if categories is None else categories
        return coco_annotations(self.annotations(), image_id=image_id, categories=ids)

    def to_supervision(
        self, *, image_size: tuple[int, int] | None = None, categories: Mapping[str, int] | None = None
    ) -> supervision.Detections:
        """The annotations as `supervision.Detections`, in their order; a text gives an empty one.

        `xyxy` holds sorted boxes, `confidence` the scores, `data["class_name"]` the labels (of text that was
        read: the words), `data["xyxyxyxy"]` quads. `class_id` comes from `categories`, as in `to_coco`;
        without it each call counts its labels from 0, so before merging pictures, tracking or building a data
        set pass one `coco.Categories(first=0)` to all calls. `image_size`: width and height of the picture,
        needed where polygons become masks [N, H, W]; an answer knows it. Raises
        MissingLibrary without the extra "supervision", RequestError without a needed size.
        """
        from florence.export.coco import Categories
        from florence.export.detections import to_detections

        ids = Categories(first=0) if categories is None else categories
        return to_detections(self.annotations(), image_size or self.pixel_size, ids)


class DrawableAnswer(Drawable):
    """An answer is drawn and exported as its result; it knows the picture's size."""

    if TYPE_CHECKING:
        result: Any  # a Drawable; typed by the answer
        image_size: Any

    @property
    def pixel_size(self) -> tuple[int, int] | None:
        return self.image_size.width, self.image_size.height

    def annotations(self) -> list[Annotation]:
        annotations: list[Annotation] = self.result.annotations()
        return annotations

    def caption(self) -> str:
        text: str = self.result.caption()
        return text
