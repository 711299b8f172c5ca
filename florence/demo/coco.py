"""Writes scenes as a COCO data set: images, annotations with boxes and polygons, captions.

Knows nothing about tasks' answer texts but the caption. Boxes are COCO's x, y, width, height in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from florence.demo.scenes import Scene, Thing
from florence.demo.truths import caption, full
from florence.demo.vocabulary import SHAPES, WORD

CATEGORIES = (*SHAPES, WORD)


def coco_dataset(scenes: Sequence[tuple[str, Scene]]) -> dict[str, Any]:
    """COCO's instances and captions in one: scenes by file name; ids count from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for image_id, (file_name, scene) in enumerate(scenes, start=1):
        images.append({"id": image_id, "file_name": file_name, "width": scene.width, "height": scene.height})
        captions.append({"id": image_id, "image_id": image_id, "caption": caption(scene)})
        for thing in scene.things:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(thing)})
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories, "captions": captions}


def _annotation(thing: Thing) -> dict[str, Any]:
    x1, y1, x2, y2 = thing.box
    return {
        "category_id": CATEGORIES.index(thing.shape) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": [thing.outline.ravel().tolist()],
        "area": polygon_area(thing.outline.tolist()),
        "iscrowd": 0,
        "description": full(thing),
        "text": thing.text,
    }


def polygon_area(corners: Sequence[Sequence[float]]) -> float:
    """Area of a simple polygon by the shoelace formula."""
    turns = zip(corners, [*corners[1:], corners[0]], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in turns)) / 2
