"""The demo world as COCO: pycocotools reads the files that `florence.demo.draw` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from florence.demo.draw import draw
from florence.demo.world.coco import CATEGORIES, coco_instances
from florence.demo.world.drawing import random_scene, thing_mask
from florence.demo.world.scenes import Limits, Scene, Split, Thing, scene_rng
from florence.demo.world.typeface import Typeface
from florence.demo.world.vocabulary import SHAPES, WORD

WIDE = Limits(things=(1, 6), word_share=0.6)
COUNT = 8


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn scenes."""
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, seed=9, count=COUNT, limits=WIDE)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Enough scenes for every shape."""
    typeface = Typeface()
    return [random_scene(scene_rng(Split.SAMPLES, 5, index), typeface, WIDE) for index in range(40)]


def _load(path: Path) -> tuple[COCO, dict[str, list[dict[str, object]]]]:
    """A COCO file, read by pycocotools and as JSON."""
    return COCO(str(path)), json.loads(path.read_text())


def test_instances_are_consistent(drawn: Path) -> None:
    """pycocotools finds every picture, category and annotation; boxes lie inside their pictures, and areas
    fit them."""
    coco, content = _load(drawn / "scene_annotations.json")
    coco.info()
    assert list(content) == ["info", "licenses", "images", "annotations", "categories"]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == [*SHAPES, WORD]
    assert sorted(coco.getImgIds()) == list(range(1, COUNT + 1))
    assert len(coco.anns) == len(content["annotations"]) > COUNT
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        assert (drawn / image["file_name"]).is_file()
        x, y, width, height = annotation["bbox"]
        assert 0 <= x <= x + width <= image["width"] + 1e-6
        assert 0 <= y <= y + height <= image["height"] + 1e-6
        assert 0 < annotation["area"] <= width * height + 1e-6


def test_every_thing_is_an_instance(scenes: list[Scene]) -> None:
    """Every thing is an instance, and all categories occur."""
    content = coco_instances([(f"{index}.png", scene) for index, scene in enumerate(scenes)])
    assert len(content["annotations"]) == sum(len(scene.things) for scene in scenes)
    assert {one["category_id"] for one in content["annotations"]} == set(range(1, len(CATEGORIES) + 1))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_has_full_precision_against_itself(drawn: Path, kind: str) -> None:
    """COCO's own evaluation of the annotations as results gives 1 for every average precision and recall."""
    coco, content = _load(drawn / "scene_annotations.json")
    results = [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "score": 0.9,
            **({"bbox": one["bbox"]} if kind == "bbox" else {"segmentation": coco.annToRLE(one)}),
        }
        for one in content["annotations"]
    ]
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert [evaluation.stats[number] for number in (0, 1, 2, 8)] == pytest.approx([1.0] * 4)


def test_captions_are_one_a_picture(drawn: Path) -> None:
    """Each picture has one caption, with the same picture numbers as the instances; captions can be loaded as
    results."""
    coco, content = _load(drawn / "scene_captions.json")
    assert coco.imgs == COCO(str(drawn / "scene_annotations.json")).imgs
    questions = json.loads((drawn / "scene_questions.json").read_text())
    for number, image in coco.imgs.items():
        (written,) = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        right = [row["answer"] for row in questions[image["file_name"]] if row["task"] == "<CAPTION>"]
        assert [written["caption"]] == right
    said = coco.loadRes([{"image_id": 1, "caption": content["annotations"][0]["caption"]}])
    assert said.getImgIds() == [1]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_masks_are_what_was_drawn(scenes: list[Scene]) -> None:
    """pycocotools' mask of a shape has the pixels that the shape covers by half or more, without holes.

    A word's mask covers its ink, and hardly anything outside the ink's frame.
    """
    typeface = Typeface()
    coco = COCO()
    coco.dataset = coco_instances([(f"{index}.png", scene) for index, scene in enumerate(scenes)])
    coco.createIndex()
    things = [thing for scene in scenes for thing in scene.things]
    for thing, annotation in zip(things, coco.dataset["annotations"], strict=True):
        found = coco.annToMask(annotation).astype(bool)
        assert annotation["area"] == pytest.approx(found.sum(), rel=0.12), thing
        drawn, frame = (_on_picture(mask, thing, typeface, found.shape) for mask in ("ink", "frame"))
        if thing.text:
            assert (found & drawn).sum() > 0.97 * drawn.sum(), thing
            assert (found & frame).sum() > 0.9 * found.sum(), thing
        else:
            assert (found & drawn).sum() > 0.85 * (found | drawn).sum(), thing


def _on_picture(what: str, thing: Thing, typeface: Typeface, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[H, W] the thing's ink on its picture, or the frame of its mask."""
    mask, (left, top) = thing_mask(thing, typeface)
    page = Image.new("L", (shape[1], shape[0]))
    page.paste(mask if what == "ink" else 255, (left, top, left + mask.width, top + mask.height))
    return np.asarray(page) >= 128
