"""Converts annotations to `supervision.Detections`, for its annotators, trackers, zones and metrics.

The only module that imports the library supervision, which comes with the extra "supervision". Knows nothing
about tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from florence.errors import MissingLibrary, RequestError
from florence.export.annotation import Annotation
from florence.export.coco import category_id, category_name
from florence.export.plates import Size

if TYPE_CHECKING:
    import supervision


def to_detections(
    annotations: Sequence[Annotation], image_size: Size | None, categories: Mapping[str, int]
) -> supervision.Detections:
    """N annotations as one `Detections`, in order; see `Drawable.to_supervision`."""
    library = load_supervision()
    scores = [annotation.score for annotation in annotations]
    made: supervision.Detections = library.Detections(
        xyxy=np.array([annotation.bounds for annotation in annotations], np.float32).reshape(-1, 4),
        mask=_masks(annotations, image_size) if any(each.shape == "area" for each in annotations) else None,
        confidence=None if None in scores else np.array(scores, np.float32),  # no missing values there
        class_id=np.array([category_id(each, categories) for each in annotations], np.int64),
        data={"class_name": np.array([each.label or category_name(each) for each in annotations], str)},
    )
    if annotations and all(annotation.shape == "quad" for annotation in annotations):
        corners = np.array([annotation.polygons[0] for annotation in annotations], np.float32)
        made.data["xyxyxyxy"] = corners.reshape(-1, 4, 2)  # supervision's name for rotated boxes
    return made


def load_supervision() -> Any:
    """Import supervision. Raises `MissingLibrary` where it is not installed."""
    try:
        with warnings.catch_warnings():
            # It warns that it is slower without OpenCV, which is of no use to callers.
            warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
            import supervision
    except ImportError as error:
        raise MissingLibrary("to_supervision", "supervision", "supervision") from error
    return supervision


def _masks(annotations: Sequence[Annotation], image_size: Size | None) -> NDArray[np.bool_]:
    """[N, H, W]: the inside of each annotation's polygons."""
    if image_size is None:
        raise RequestError(
            "polygons become masks of the picture's size: give image_size=(width, height), or call "
            "to_supervision of the whole answer, which knows it"
        )
    masks = np.zeros((len(annotations), image_size[1], image_size[0]), np.bool_)
    for mask, annotation in zip(masks, annotations, strict=True):
        drawn = Image.new("1", image_size)
        pen = ImageDraw.Draw(drawn)
        for polygon in annotation.polygons:
            pen.polygon(list(polygon), fill=1)
        mask[:] = np.asarray(drawn)
    return masks
