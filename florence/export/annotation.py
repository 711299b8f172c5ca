"""Annotations: the places in a picture that a result names, ready to be drawn or exported.

Knows nothing about tasks or where answers come from: each result lists its annotations. Pillow is imported
with the first drawing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from florence.export.geometry import Box, bounds_of

if TYPE_CHECKING:
    import supervision
    from PIL import Image

    from florence.export.coco import LabelMap
    from florence.export.drawing import Colour


OPACITY: Final = 0.4
"""Opacity of masks in drawings, unless another is given."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One place in a picture.

    `polygons`: its closed parts, each x1, y1, x2, y2, ... in pixels. `category`: its category in COCO; None:
    the label. `shape`: "box": the polygon is only the bounding box; "quad": one quadrilateral, clockwise;
    "area": the inside of the polygons, which is drawn as a mask.
    """

    label: str
    score: float | None
    polygons: Sequence[Sequence[float]]
    shape: Literal["box", "quad", "area"]
    category: str | None = None

    @property
    def bounds(self) -> Box:
        """Left, top, right, bottom; sorted even if the model swapped corners."""
        return bounds_of([number for polygon in self.polygons for number in polygon])


class Drawable(ABC):
    """A result that can be drawn on its picture and exported."""

    @abstractmethod
    def annotations(self) -> list[Annotation]:
        """The places that the result names, in order; none for a text."""

    def caption(self) -> str:
        """The text to draw below the picture; empty for none."""
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
        colours: Mapping[str, Colour] | None = None,
        opacity: float = OPACITY,
        overlay: bool = False,
    ) -> Image.Image:
        """A copy of the picture, RGB, with masks, outlines, labels and scores on it.

        A label is next to its thing. If it has no room there, it goes into a column to the right of the
        picture, which is made wider, with a line to its thing; only if that column is full too, it covers
        things. A text goes into a strip below the picture.

        `image`: the picture of the request, as a PIL image, bytes or a path. `font`: a TrueType file for
        labels beyond Latin letters, which Pillow's own font lacks. `colours`: by label ("text" for text that
        was read, "object" for things without a label), a name, "#rrggbb" or red, green and blue; other labels
        get colours in order of appearance. One `drawing.Colours()`, passed to many calls, keeps them the same
        across pictures. `opacity`: of masks, from 0 (only the border) to 1. `overlay`: return an RGBA layer
        of the picture's size, transparent where nothing is drawn; a label without room covers its thing.

        Raises `ImageError` for a picture or font that can't be read, `RequestError` for an invalid colour or
        opacity, and for an overlay of a text.
        """
        from florence.export.drawing import Drawing

        drawing = Drawing(font=font, colours=colours, opacity=opacity, overlay=overlay)
        return drawing.draw(image, self.annotations(), self.caption())

    def to_coco(self, *, image_id: int = 1, categories: LabelMap | None = None) -> list[dict[str, Any]]:
        """COCO annotations, numbered from 1; a text gives none.

        `categories`: the label map, the same for all pictures: ids by name, a list of names (numbered from
        1), the `categories` of a COCO file, or one `coco.Categories()`, which gives new labels the next id.
        Raises `RequestError` without it, and for a label that it lacks. `florence.export.coco.coco_dataset`
        makes a data set from many answers.
        """
        from florence.export.coco import coco_annotations, label_map

        ids = label_map(categories, first=1)
        return coco_annotations(self.annotations(), image_id=image_id, categories=ids)

    def to_supervision(
        self, *, image_size: tuple[int, int] | None = None, categories: LabelMap | None = None
    ) -> supervision.Detections:
        """The annotations as `supervision.Detections`, in order; empty for a text.

        `xyxy` holds sorted boxes, `confidence` the scores, `data["class_name"]` the labels (of text that was
        read: the words), `data["xyxyxyxy"]` quads. `class_id` comes from `categories`, as in `to_coco`, but a
        list of names is numbered from 0, by index. `image_size`: width and height of the picture, needed if
        polygons become masks [N, H, W]; answers know it themselves. Raises `MissingLibrary` without the extra
        "supervision", `RequestError` as `to_coco`, and for a missing size.
        """
        from florence.export.coco import label_map
        from florence.export.detections import to_detections

        ids = label_map(categories, first=0)
        return to_detections(self.annotations(), image_size or self.pixel_size, ids)


class DrawableAnswer(Drawable):
    """An answer, drawn and exported like its result; it knows the picture's size."""

    if TYPE_CHECKING:
        result: Drawable  # its kind is the answer's
        image_size: Any

    @property
    def pixel_size(self) -> tuple[int, int] | None:
        return self.image_size.width, self.image_size.height

    def annotations(self) -> list[Annotation]:
        return self.result.annotations()

    def caption(self) -> str:
        return self.result.caption()
