"""Marks as `supervision.Detections`: for its annotators, trackers, zones and metrics.

Knows the library supervision, which is imported by nobody else; it comes with the extra "supervision".
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from florence.errors import MissingLibrary, RequestError
from florence.export.annotation import Mark
from florence.export.coco import category_name

if TYPE_CHECKING:
    import supervision

Size = tuple[int, int]  # width, height


def to_detections(
    marks: Sequence[Mark], image_size: Size | None, categories: Mapping[str, int] | None
) -> supervision.Detections:
    """N marks as one Detections, in their order; see `Drawable.to_supervision`."""
    library = _supervision()
    made: supervision.Detections = library.Detections(
        xyxy=np.array([mark.bounds for mark in marks], np.float32).reshape(-1, 4),
        mask=_masks(marks, image_size) if any(mark.shape == "area" for mark in marks) else None,
        confidence=_scores(marks),
        class_id=_class_ids(marks, categories),
        data={"class_name": np.array([mark.label or category_name(mark) for mark in marks], str)},
    )
    if marks and all(mark.shape == "quad" for mark in marks):
        corners = np.array([mark.outlines[0] for mark in marks], np.float32)
        made.data["xyxyxyxy"] = corners.reshape(-1, 4, 2)  # supervision's name for turned boxes
    return made


def _supervision() -> Any:
    try:
        with warnings.catch_warnings():
            # Without OpenCV it says that it is slower: nothing that the caller could mend here.
            warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
            import supervision
    except ImportError as error:
        raise MissingLibrary("to_supervision", "supervision", "supervision") from error
    return supervision


def _scores(marks: Sequence[Mark]) -> NDArray[np.float32] | None:
    """[N]; None where one of them has none, for supervision knows no gaps."""
    scores = [mark.score for mark in marks]
    return None if None in scores else np.array(scores, np.float32)


def _class_ids(marks: Sequence[Mark], categories: Mapping[str, int] | None) -> NDArray[np.int64]:
    """[N]; KeyError for a category without an id."""
    names = [category_name(mark) for mark in marks]
    if categories is None:
        categories = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([categories[name] for name in names], np.int64)


def _masks(marks: Sequence[Mark], image_size: Size | None) -> NDArray[np.bool_]:
    """[N, H, W]: what lies within each mark's outlines."""
    if image_size is None:
        raise RequestError(
            "outlines become masks of the picture's size: give image_size=(width, height), or call "
            "to_supervision of the whole answer, which knows it"
        )
    masks = np.zeros((len(marks), image_size[1], image_size[0]), np.bool_)
    for mask, mark in zip(masks, marks, strict=True):
        drawn = Image.new("1", image_size)
        pen = ImageDraw.Draw(drawn)
        for outline in mark.outlines:
            pen.polygon(list(outline), fill=1)
        mask[:] = np.asarray(drawn)
    return masks
