"""Results as supervision's `Detections`."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from found import BOXES, PLACES, POLYGONS, QUADS, SIZE, answer

from florence.errors import MissingLibrary, RequestError
from florence.export.annotation import Drawable
from florence.export.coco import Categories
from florence.types.results import Detections, OcrRegions, Text


def test_boxes_for_supervision() -> None:
    """Boxes are sorted and labelled, classes count from 0, and there are no scores if one is missing."""
    found = BOXES.to_supervision(categories=Categories(first=0))
    assert found.xyxy.tolist() == [[40, 60, 120, 140], [150.5, 90.0, 230.5, 150.0]]
    assert found.data["class_name"].tolist() == ["car", "object"]
    assert found.class_id.tolist() == [0, 1]
    assert found.confidence is None
    assert found.mask is None
    scored = Detections(detections=BOXES.detections[:1]).to_supervision(categories={"car": 9})
    assert scored.confidence.tolist() == pytest.approx([0.93])
    assert scored.class_id.tolist() == [9]


def test_words_for_supervision() -> None:
    """Words are the labels of one class, and their corners are stored as supervision's rotated boxes."""
    found = QUADS.to_supervision(categories=["text"])
    assert found.data["class_name"].tolist() == ["EXIT"]
    assert found.data["xyxyxyxy"].tolist() == [[[50, 50], [150, 60], [148, 90], [48, 80]]]
    assert found.xyxy.tolist() == [[48, 50, 150, 90]]


def test_polygons_for_supervision_are_masks_of_the_picture() -> None:
    """All polygons of a thing are one mask of the picture's size, which an answer knows."""
    found = answer(POLYGONS).to_supervision(categories=["leaf"])
    assert found.mask.shape == (1, SIZE[1], SIZE[0])
    assert found.mask.sum() == pytest.approx(80 * 80 + 50 * 50 / 2, rel=0.05)
    assert found.mask[0, 100, 80]
    assert found.mask[0, 60, 195]
    assert not found.mask[0, 10, 10]
    with pytest.raises(RequestError, match="image_size"):
        POLYGONS.to_supervision(categories=["leaf"])


@pytest.mark.parametrize("nothing", [Detections(detections=[]), OcrRegions(regions=[]), Text(text="a")])
def test_nothing_found_is_an_empty_detections(nothing: Drawable) -> None:
    """A result without things gives empty detections, which can be filtered."""
    empty = nothing.to_supervision(categories=["car"])
    assert len(empty) == 0
    assert len(empty[empty.confidence > 0.5]) == 0
    assert empty.data["class_name"].tolist() == []


@pytest.mark.parametrize("name", PLACES)
def test_supervision_draws_them(name: str) -> None:
    """supervision's annotators draw the detections."""
    found = answer(PLACES[name]).to_supervision(categories=Categories(first=0))
    import supervision  # after florence, which keeps back what it says about OpenCV

    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    annotators = [supervision.BoxAnnotator(), supervision.LabelAnnotator()]
    if name == "polygons":
        annotators.append(supervision.MaskAnnotator())
    for annotator in annotators:
        image = annotator.annotate(image, found)
    assert image.any()


def test_without_supervision_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without supervision the error names the package to install."""
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingLibrary, match="pip install supervision"):
        BOXES.to_supervision(categories=Categories())
