"""Filters of answers: which items they keep, and that typed results and the original's JSON follow
one rule."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pieces import pieces_of
from serving import ROOT

from florence import Florence2
from florence.answers import parse_answer
from florence.answers.filtering import Place, items_of, keep_items, keep_original_items, kept_items
from florence.errors import OptionError
from florence.export.geometry import overlap
from florence.types.bounds import WINDOWS
from florence.types.filters import ItemFilter
from florence.types.options import read_request_parameters
from florence.types.results import Detection, Detections, Text

SIZE = (1000, 1000)
NAMES = ("circle", "heart")


def random_items(seed: int) -> list[Place]:
    """Up to twelve items with random labels, boxes and scores."""
    dice = random.Random(seed)
    items = []
    for _ in range(dice.randint(0, 12)):
        left, top = dice.randint(0, 60), dice.randint(0, 60)
        bounds = (left, top, left + dice.randint(0, 40), top + dice.randint(0, 40))
        items.append(
            Place(dice.choice(["car", "Door"]), bounds, dice.choice([None, 0.0, 0.3, 0.3, 0.8, 1.0]))
        )
    return items


@given(seed=st.integers(0, 10_000), least=st.floats(0, 1), side=st.floats(0, 50), most=st.integers(1, 9))
def test_each_filter_keeps_just_what_it_says(seed: int, least: float, side: float, most: int) -> None:
    """Each filter alone keeps exactly the items that its description names."""
    items = random_items(seed)
    kept = {
        name: [items[index] for index in kept_items(items, ItemFilter(**{name: value}))]
        for name, value in {"min_score": least, "min_size": side, "labels": ["DOOR"]}.items()
    }
    assert kept["min_score"] == [item for item in items if item.score is not None and item.score >= least]
    assert kept["labels"] == [item for item in items if item.label == "Door"]
    sides = [(item.bounds[2] - item.bounds[0], item.bounds[3] - item.bounds[1]) for item in items]
    assert kept["min_size"] == [item for item, own in zip(items, sides, strict=True) if min(own) >= side]
    best = kept_items(items, ItemFilter(max_items=most))
    assert best == sorted(best)
    assert len(best) == min(most, len(items))
    ranks = [-1.0 if item.score is None else item.score for item in items]
    left = [ranks[index] for index in range(len(items)) if index not in best]
    assert not left or not best or min(ranks[index] for index in best) >= max(left)


@given(seed=st.integers(0, 10_000), most=st.floats(0, 1), agnostic=st.booleans())
def test_suppression_leaves_no_two_that_overlap_and_drops_for_a_better_one(
    seed: int, most: float, agnostic: bool
) -> None:
    """Suppression keeps no two items of one label (or of any) that overlap, and drops an item only for a kept
    one that is at least as good."""
    items = random_items(seed)
    kept = kept_items(items, ItemFilter(nms_iou=most, nms_agnostic=agnostic))

    def rivals(a: int, b: int) -> bool:
        same = agnostic or items[a].label == items[b].label
        return same and overlap(items[a].bounds, items[b].bounds) > most

    assert not any(rivals(a, b) for a in kept for b in kept if a < b)
    rank = [-1.0 if item.score is None else item.score for item in items]
    for index in set(range(len(items))) - set(kept):
        assert any(rivals(index, other) and rank[other] >= rank[index] for other in kept)


def test_filters_that_are_off_leave_every_result_as_it_is() -> None:
    """Filters that are off change no result, and no filter changes a text."""
    assert ItemFilter().is_off
    assert ItemFilter(nms_agnostic=True).is_off
    found = Detections(detections=[Detection(label="car", box=(1, 2, 3, 4), score=0.1)] * 2)
    assert keep_items(found, ItemFilter()) == found
    text = Text(text="car", score=0.1)
    assert keep_items(text, ItemFilter(min_score=0.9, labels=["door"])) == text


ANSWERS = [
    ("<OD>", "car<loc_1><loc_2><loc_300><loc_400>door<loc_900><loc_800><loc_500><loc_600>"),
    ("<REGION_PROPOSAL>", "<loc_1><loc_2><loc_300><loc_400><loc_5><loc_6><loc_700><loc_800>"),
    ("<OCR_WITH_REGION>", "a" + "".join(f"<loc_{bin_}>" for bin_ in (0, 0, 50, 0, 50, 20, 0, 20))
     + "b" + "".join(f"<loc_{bin_}>" for bin_ in (0, 100, 50, 100, 50, 120, 0, 120))),
    ("<REFERRING_EXPRESSION_SEGMENTATION>",
     "<loc_1><loc_1><loc_90><loc_1><loc_90><loc_90><sep><loc_200><loc_200><loc_300><loc_200><loc_300><loc_300>"),
    ("<OPEN_VOCABULARY_DETECTION>", "car<loc_1><loc_2><loc_300><loc_400>car<loc_5><loc_6><loc_700><loc_800>"),
    ("<OPEN_VOCABULARY_DETECTION>",
     "car<poly><loc_1><loc_1><loc_90><loc_1><loc_90><loc_90></poly>door<poly><loc_5><loc_5><loc_9><loc_5>"
     "<loc_9><loc_9></poly>"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "text"), ANSWERS, ids=lambda value: value[:24])
@pytest.mark.parametrize(
    "wanted", [{"min_score": 0.5}, {"labels": ["car", "a"]}, {"max_items": 1}, {"min_size": 250.0}], ids=str
)
def test_the_originals_json_is_filtered_by_the_same_rule(
    task: str, text: str, wanted: dict[str, Any]
) -> None:
    """The original's JSON keeps the same items at the same positions as the typed result, and all
    its keys."""
    pieces = pieces_of([part for part in text.replace("<", "\0<").replace(">", ">\0").split("\0") if part])
    tokens = pieces[-1].stop
    parsed = parse_answer(
        task,
        text,
        image_size=SIZE,
        pieces=pieces,
        token_logprobs=[-0.1] * tokens,
        token_windows=[(1.0 if index < tokens / 2 else 0.1,) * len(WINDOWS) for index in range(tokens)],
    )
    options = ItemFilter(**wanted)
    kept = keep_items(parsed.result, options).annotations()
    original = keep_original_items(parsed.florence(), parsed.result, options)[task]
    assert original.keys() == parsed.florence()[task].keys()
    places = [*original.get("bboxes", []), *original.get("quad_boxes", [])]
    bounds = [(min(p[0::2]), min(p[1::2]), max(p[0::2]), max(p[1::2])) for p in places]
    bounds += [
        (min(x), min(y), max(x), max(y))
        for polygons in original.get("polygons", [])
        for x, y in [([n for p in polygons for n in p[0::2]], [n for p in polygons for n in p[1::2]])]
    ]
    assert len(bounds) == len(kept)
    for found, annotation in zip(bounds, kept, strict=True):
        assert found == pytest.approx(annotation.bounds, abs=0.01)
    for name in ("labels", "bboxes_labels", "polygons_labels"):
        if name in original:
            partner = {"labels": None, "bboxes_labels": "bboxes", "polygons_labels": "polygons"}[name]
            assert len(original[name]) == (len(original[partner]) if partner else len(bounds))


def test_labels_may_be_one_text_with_commas() -> None:
    """Labels may come as one text with commas, as a form, a command line and a v2 parameter send them."""
    assert read_request_parameters({"labels": "car, red door"}).labels == ("car", "red door")
    with pytest.raises(OptionError, match="labels must be 1 to 1000 texts"):
        read_request_parameters({"labels": "car,,"})
    with pytest.raises(OptionError, match="min_score must be a number from 0 to 1, got 2"):
        read_request_parameters({"min_score": 2})


def test_a_request_says_what_to_keep_and_v2_filters_only_when_asked() -> None:
    """A request's filters apply to the typed answer and to the original's JSON; they don't change scores."""
    picture = ROOT / "data" / "scene_02.png"
    with Florence2.load("demo", device="cpu", dtype="float32") as model:
        found = model.run(picture, "<OD>").result
        least = sorted(item.score or 0.0 for item in items_of(found))[1]
        kept = model.run(picture, "<OD>", min_score=least).result
        assert items_of(kept) == [item for item in items_of(found) if (item.score or 0.0) >= least]
        assert len(items_of(kept)) == len(items_of(found)) - 1
        wanted = read_request_parameters({"labels": "circle,Heart"})
        plain, filtered = (
            json.loads(model.submit_original(picture, "<OD>", parameters=each).result().text)["<OD>"]
            for each in (read_request_parameters({}), wanted)
        )
    assert plain["labels"] == [item.label for item in items_of(found)]
    assert filtered == {
        name: [value for value, label in zip(plain[name], plain["labels"], strict=True) if label in NAMES]
        for name in plain
    }
