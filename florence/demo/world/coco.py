"""Writes scenes as COCO data sets, in the layout of COCO's own files: instances and captions.

Both files use the same picture ids. Boxes are COCO's x, y, width, height in pixels; ids start at 1. Boxes and
outlines are those of whole things, even if another one is in front. A word's outline is the frame around its
letters; a ring's has its hole. Knows no answer texts except captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from florence.demo.world.ground_truth import caption, full
from florence.demo.world.scenes import Scene, Thing
from florence.demo.world.vocabulary import SHAPES, WORD
from florence.export.geometry import coco_box, polygon_area

CATEGORIES = (*SHAPES, WORD)

Scenes = Sequence[tuple[str, Scene]]


def coco_instances(scenes: Scenes) -> dict[str, Any]:
    """COCO's instances. `scenes`: by file name. `description` and `text` are additional fields of
    annotations."""
    annotations: list[dict[str, Any]] = []
    for image_id, (_, scene) in enumerate(scenes, start=1):
        for thing in scene.things:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(thing)})
    categories = [
        {"id": number, "name": name, "supercategory": "text" if name == WORD else "shape"}
        for number, name in enumerate(CATEGORIES, start=1)
    ]
    return {**coco_head(scenes), "annotations": annotations, "categories": categories}


def coco_captions(scenes: Scenes) -> dict[str, Any]:
    """COCO's captions: one short caption for each scene."""
    texts = enumerate((caption(scene) for _, scene in scenes), start=1)
    annotations = [{"id": number, "image_id": number, "caption": text} for number, text in texts]
    return {**coco_head(scenes), "annotations": annotations}


def coco_head(scenes: Scenes) -> dict[str, Any]:
    """The part that all data sets of these scenes share."""
    images = [
        {"id": image_id, "file_name": file_name, "width": scene.width, "height": scene.height}
        for image_id, (file_name, scene) in enumerate(scenes, start=1)
    ]
    return {"info": {"description": "scenes drawn by florence.demo"}, "licenses": [], "images": images}


def _annotation(thing: Thing) -> dict[str, Any]:
    outline = thing.outline
    if thing.shape == "ring":
        # Around the outer edge, in to the hole, around it in the opposite direction, and back: COCO's
        # polygons have no holes, but a polygon with such a seam covers the same area.
        hole = thing.hole
        outline = np.concatenate([outline, outline[:1], hole[:1], hole[:0:-1], hole[:1]])
    polygon = outline.ravel().tolist()
    return {
        "category_id": CATEGORIES.index(thing.shape) + 1,
        "bbox": coco_box(thing.box),
        "segmentation": [polygon],
        "area": polygon_area(polygon),
        "iscrowd": 0,
        "description": full(thing),
        "text": thing.text,
    }
