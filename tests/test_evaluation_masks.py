"""Average precision of masks equals COCO's own evaluation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import frPyObjects, merge

from florence.evaluation.files.examples import Answered, Example, TrueThing, Truth, picture_numbers
from florence.evaluation.measures.boxes import measure_open_vocabulary
from florence.evaluation.measures.masks import measure_regions
from florence.types.results import Instance, Segmentation

SQUARE = (0.0, 0.0, 10.0, 10.0)


def random_star(dice: random.Random) -> list[float]:
    """A polygon of five corners in a picture of 100 x 80."""
    x, y, size = dice.uniform(20, 70), dice.uniform(20, 50), dice.uniform(8, 18)
    turns = [2 * math.pi * corner / 5 for corner in range(5)]
    return [value for turn in turns for value in (x + size * math.cos(turn), y + size * math.sin(turn))]


def outlined(dice: random.Random, number: int, label: str) -> Answered:
    """A question about one class in a picture, its true things, and outlines near some of them."""
    stars = [random_star(dice) for _ in range(dice.randint(1, 3))]
    things = tuple(
        TrueThing(label, SQUARE, [star, random_star(dice)], crowd=dice.random() < 0.1) for star in stars
    )
    kept = [star for star in stars if dice.random() < 0.8] + [random_star(dice)]
    shift = dice.uniform(0, 4)
    instances = [
        Instance(label="", polygons=[[value + shift for value in star]], score=dice.random()) for star in kept
    ]
    example = Example(f"{number}.png", Path(f"{number}.png"), Truth(things), label)
    return Answered(example, Segmentation(instances=instances), (100, 80))


def by_cocos_own_way(rows: Sequence[Answered]) -> list[float]:
    """AP, AP50 and AP75 of the masks, by COCO's own evaluation."""
    labels = list(dict.fromkeys(row.example.text for row in rows))
    frame = {
        "images": [{"id": number, "width": 100, "height": 80} for number in picture_numbers(rows)],
        "categories": [{"id": number} for number in range(len(labels))],
    }
    truth, found = [], []
    for number, row in zip(picture_numbers(rows), rows, strict=True):
        place = {"image_id": number, "category_id": labels.index(row.example.text)}
        assert isinstance(row.result, Segmentation)
        for each in row.result.instances:
            code = merge(frPyObjects(each.polygons, 80, 100))
            found.append({**place, "segmentation": code, "score": each.score})
        for thing in row.example.truth.things:
            one = {
                "segmentation": thing.outline,
                "iscrowd": int(thing.crowd),
                "area": 1.0,
                "bbox": [0, 0, 1, 1],
            }
            truth.append({**place, **one, "id": len(truth) + 1})
    coco = COCO()
    coco.dataset = {**frame, "info": {}, "annotations": truth}
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats[:3])


@pytest.mark.parametrize("seed", range(4))
def test_masks_have_cocos_figures(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of random things, with parts and crowds, have the figures of COCO's evaluation.

    Figures are by class if a text named it; in a region each question counts by itself.
    """
    dice = random.Random(seed)
    rows = [outlined(dice, number // 2, "ab"[number % 2]) for number in range(24)]
    evaluation = measure_open_vocabulary(rows)
    figures = evaluation.figures()
    masks = [figures[f"masks_{name}"] for name in ("mAP@50:95", "mAP@50", "mAP@75")]
    assert masks == pytest.approx(by_cocos_own_way(rows))
    assert 0 < masks[0] < masks[1] < 1
    single = [
        replace(row, example=replace(row.example, picture=f"{n}", truth=Truth(row.example.truth.things[:1])))
        for n, row in enumerate(rows)
    ]
    alone = measure_regions(single).figures()
    assert [alone[name] for name in ("mAP@50:95", "mAP@50", "mAP@75")] == pytest.approx(
        by_cocos_own_way(single)
    )
