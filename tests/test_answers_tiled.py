"""Merged results of tiles: each thing that a perfect model sees in the tiles is found once, whole, at its
place."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence.answers import tiled_things
from florence.answers.filtering import items_of
from florence.answers.original_form import original_form
from florence.answers.tiled import TileResult, merge_results, text_of
from florence.export.geometry import area, meet
from florence.images.tiles import Tiling
from florence.types.results import (
    Box,
    Detection,
    Detections,
    Instance,
    OcrRegion,
    OcrRegions,
    Quad,
    Result,
    Segmentation,
    Text,
)
from florence.types.tasks import TASKS

SIZE = (400, 300)
LETTER = 8  # the width of a letter in pixels
BOXES = Detections(detections=[Detection(label="é", box=(1, 2, 3, 4))])
QUADS = OcrRegions(regions=[OcrRegion(text="a", quad=(1, 2, 3, 2, 3, 4, 1, 4))])
OUTLINES = Segmentation(instances=[Instance(label="a", polygons=[[1, 2, 3, 2, 3, 4]])])
tilings = st.builds(
    lambda scale, overlap: Tiling(None, scale, (overlap, overlap), 10_000),
    st.sampled_from([0.8, 1.0, 1.3]),
    st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5]),
)


def frames_of(tiling: Tiling) -> list[Box]:
    """The frames of the tiles in the picture's pixels."""
    return [tuple(map(float, frame)) for frame in tiling.cut(SIZE, (100, 100))]  # type: ignore[misc]


def apart(dice: random.Random, most: int) -> list[Box]:
    """Boxes with some space between them, some small and some larger than a tile."""
    boxes = list[Box]()
    for _ in range(most):
        wide, high = dice.randint(14, 170), dice.randint(14, 120)
        left, top = dice.randint(0, SIZE[0] - wide), dice.randint(0, SIZE[1] - high)
        box = (float(left), float(top), float(left + wide), float(top + high))
        around = (box[0] - 12, box[1] - 12, box[2] + 12, box[3] + 12)
        if all(area(meet(around, other)) == 0 for other in boxes):
            boxes.append(box)
    return boxes


def seen(frame: Box, box: Box) -> Box | None:
    """The part of a box that a tile shows, in the tile's own pixels; None if it shows none."""
    left, top, right, bottom = meet(frame, box)
    if right - left < 1 or bottom - top < 1:
        return None
    return left - frame[0], top - frame[1], right - frame[0], bottom - frame[1]


def quad_of(box: Box) -> Quad:
    """A box as a quad."""
    left, top, right, bottom = box
    return left, top, right, top, right, bottom, left, bottom


def detections(frame: Box, things: list[tuple[str, Box]]) -> Detections:
    """The detections of a perfect model in this frame."""
    shown = [(label, seen(frame, box)) for label, box in things]
    return Detections(
        detections=[Detection(label=label, box=box, score=0.5) for label, box in shown if box is not None]
    )


@given(seed=st.integers(0, 100_000), tiling=tilings)
def test_each_thing_comes_back_once_and_whole(seed: int, tiling: Tiling) -> None:
    """Each thing is found once and whole, however many tiles show it and borders cut it."""
    dice = random.Random(seed)
    things = [(dice.choice("ab"), box) for box in apart(dice, 8)]
    tiles = [TileResult(frame, detections(frame, things)) for frame in frames_of(tiling)]
    merged = merge_results(tiles, SIZE)
    assert isinstance(merged, Detections)
    assert sorted((found.label, found.box) for found in merged.detections) == sorted(things)


@given(seed=st.integers(0, 100_000), tiling=tilings)
def test_the_order_of_the_tiles_does_not_matter(seed: int, tiling: Tiling) -> None:
    """The merged result does not depend on the order of the tiles, even with wrong detections."""
    dice = random.Random(seed)
    tiles = []
    for frame in frames_of(tiling):
        boxes = [seen(frame, (x, y, x + 40, y + 30)) for x, y in dice.choices([(90, 50), (10, 200)], k=3)]
        found = [
            Detection(label=dice.choice("ab"), box=box, score=dice.choice([None, 0.5, 0.5, 0.9]))
            for box in boxes
            if box is not None
        ]
        tiles.append(TileResult(frame, Detections(detections=found)))
    shuffled = dice.sample(tiles, len(tiles))
    assert merge_results(shuffled, SIZE) == merge_results(tiles, SIZE)


@given(seed=st.integers(0, 100_000), tiling=tilings)
def test_outlines_keep_what_their_tiles_show(seed: int, tiling: Tiling) -> None:
    """A thing's polygons stay within it and reach all its sides, even if some tiles give only boxes."""
    dice = random.Random(seed)
    things = [(str(number), box) for number, box in enumerate(apart(dice, 5))]
    tiles = []
    for frame in frames_of(tiling):
        result: Result = detections(frame, things)
        if dice.random() < 0.7:
            places = [(place.label, quad_of(place.bounds)) for place in items_of(result)]
            result = Segmentation(
                instances=[Instance(label=label, polygons=[list(quad)]) for label, quad in places]
            )
        tiles.append(TileResult(frame, result))
    merged = merge_results(tiles, SIZE)
    assert sorted((place.label, place.bounds) for place in items_of(merged)) == sorted(things)


@settings(max_examples=40)
@given(seed=st.integers(0, 100_000), overlap=st.sampled_from([0.1, 0.2, 0.35, 0.5]))
def test_a_line_of_text_is_read_across_borders(seed: int, overlap: float) -> None:
    """Each letter of a line across tiles is read once, although the model misreads letters cut by a
    border."""
    dice = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz "
    texts = ["".join(dice.sample(letters, dice.randint(3, 27))).strip() for _ in range(3)]
    lines = {top: (dice.randint(0, 120), text) for top, text in zip((20, 120, 240), texts, strict=True)}
    tiles = []
    for frame in frames_of(Tiling(None, 1.0, (overlap, overlap), 100)):
        regions = []
        for top, (left, text) in lines.items():
            whole = (float(left), float(top), float(left + LETTER * len(text)), float(top + 14))
            box = seen(frame, whole)
            if box is None or box[3] - box[1] < 14:  # a line that is cut lengthwise can't be read
                continue
            starts = [left + LETTER * index for index in range(len(text))]
            shown = [
                letter if frame[0] <= x and x + LETTER <= frame[2] else dice.choice("IL|")
                for x, letter in zip(starts, text, strict=True)
                if x + LETTER > frame[0] and x < frame[2]
            ]
            regions.append(OcrRegion(text="".join(shown), quad=quad_of(box), score=0.9))
        tiles.append(TileResult(frame, OcrRegions(regions=regions)))
    merged = merge_results(tiles, SIZE)
    assert isinstance(merged, OcrRegions)
    assert [region.text for region in merged.regions] == [text for _, text in lines.values()]
    assert text_of(merged) == "\n".join(text for _, text in lines.values())


def test_a_joined_thing_is_as_likely_as_the_least_likely_of_its_parts() -> None:
    """A joined thing has its least likely part's score; a thing that one tile shows whole has that tile's
    score."""
    left, right, whole = (0.0, 0.0, 100.0, 100.0), (80.0, 0.0, 200.0, 100.0), (0.0, 0.0, 200.0, 100.0)

    def tile(frame: Box, box: Box, score: float) -> TileResult:
        found = Detection(label="a", box=box, score=score, original_score=score / 2)
        return TileResult(frame, Detections(detections=[found]))

    parts = [tile(left, (50, 20, 100, 60), 0.9), tile(right, (0, 20, 50, 60), 0.7)]
    joined = merge_results(parts, (200, 100))
    assert joined == Detections(
        detections=[Detection(label="a", box=(50, 20, 130, 60), score=0.7, original_score=0.35)]
    )
    known = merge_results([*parts, tile(whole, (50, 20, 130, 60), 0.8)], (200, 100))
    assert [found.score for found in known.detections] == [0.8]  # type: ignore[union-attr]


def test_items_of_one_tile_are_never_one_thing() -> None:
    """Items of one tile are never merged: a face in a person, or two labels for one box, stay."""
    box = (10.0, 10.0, 60.0, 90.0)
    boxes = [("person", box), ("person", (11.0, 10.0, 60.0, 90.0)), ("girl", box)]
    frames = [(0.0, 0.0, 100.0, 100.0), (0.0, 0.0, 80.0, 100.0)]
    tiles = [TileResult(frame, detections(frame, boxes)) for frame in frames]
    assert items_of(merge_results(tiles, (100, 100))) == items_of(tiles[0].result)


@given(seed=st.integers(0, 100_000))
def test_a_cut_things_sliver_beside_it_is_a_part_of_it(seed: int) -> None:
    """A sliver that a tile places slightly above a whole thing is merged into it, unless its label
    differs."""
    dice = random.Random(seed)
    frames = [(0.0, 0.0, 200.0, 200.0), (0.0, 120.0, 200.0, 320.0)]
    left, top = dice.uniform(20, 80), dice.uniform(150, 165)
    whole = (left, top, left + dice.uniform(60, 100), top + dice.uniform(70, 100))
    sliver = (left + 2, top - 4.5, whole[2] - 2, top - 0.5)
    for label in ("a", "b"):
        tiles = [
            TileResult(frames[0], Detections(detections=[Detection(label=label, box=sliver, score=0.4)])),
            TileResult(frames[1], detections(frames[1], [("a", whole)])),
        ]
        kept = ["a"] if label == "a" else ["b", "a"]
        assert [place.label for place in items_of(merge_results(tiles, (200, 320)))] == kept


def test_a_label_that_another_tile_denies_is_dropped() -> None:
    """If one tile gives two labels for a place, a label is dropped when another tile shows the place and
    gives only the other label.

    If no other tile shows the place, or all give both, both labels stay.
    """
    ring, word = (100.0, 80.0, 172.0, 156.0), (72.0, 80.0, 172.0, 133.0)
    near, far = (90.0, 40.0, 300.0, 250.0), (150.0, 40.0, 300.0, 250.0)
    both = detections((0.0, 0.0, 200.0, 200.0), [("ring", ring), ("word", word)])
    for other, things, kept in (
        (near, [("ring", ring)], ["ring"]),
        (far, [("ring", ring)], ["ring", "word"]),
        (near, [("ring", ring), ("word", word)], ["ring", "word"]),
    ):
        tiles = [TileResult((0.0, 0.0, 200.0, 200.0), both), TileResult(other, detections(other, things))]
        assert [place.label for place in items_of(merge_results(tiles, (300, 250)))] == kept


def crowd(dice: random.Random, count: int, side: int, text: bool) -> list[TileResult]:
    """Tiles of 100 pixels, each with random items."""

    def anything() -> Detection | OcrRegion:
        x, y, score = dice.uniform(0, 60), dice.uniform(0, 60), dice.random()
        box = (x, y, x + dice.uniform(0, 40), y + dice.uniform(0, 40))
        if text:
            return OcrRegion(text=dice.choice("ab"), quad=quad_of(box), score=score)
        return Detection(label=dice.choice("ab"), box=box, score=score)

    tiles = []
    for frame in Tiling(None, 1.0, (0.25, 0.25), 10_000).cut((side, side), (100, 100)):
        items: list[Any] = [anything() for _ in range(count)]
        result = OcrRegions(regions=items) if text else Detections(detections=items)
        left, top, right, bottom = map(float, frame)
        tiles.append(TileResult((left, top, right, bottom), result))
    return tiles


def everything(places: Any, bounds: Box) -> list[Any]:
    """All things of all places."""
    return list({id(thing): thing for things in places.things.values() for thing in things}.values())


@given(seed=st.integers(0, 100_000), text=st.booleans())
def test_comparing_nearby_things_is_enough(seed: int, text: bool) -> None:
    """Comparing each thing with all others gives the same result as comparing it with those in
    nearby cells."""
    tiles = crowd(random.Random(seed), 4, 250, text)
    merged = merge_results(tiles, (250, 250))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_things.Places, "near", everything)
        assert merge_results(tiles, (250, 250)) == merged


@pytest.mark.parametrize("text", [False, True])
def test_the_cost_grows_linearly_with_the_things(text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture with four times as many tiles needs under six times as many comparisons.

    The comparison is a private function, which is counted here: no public result shows the cost.
    """
    name = "_in_one_place" if text else "_is_part"
    rule, calls = getattr(tiled_things, name), list[int]()
    monkeypatch.setattr(tiled_things, name, lambda *given: calls.append(1) or rule(*given))
    counts = []
    for side in (475, 925):  # 36 and 144 tiles
        calls.clear()
        merge_results(crowd(random.Random(0), 5, side, text), (side, side))
        counts.append(len(calls))
    assert counts[1] < 6 * counts[0]


def test_each_place_has_one_text() -> None:
    """If two tiles read the same place, only the likelier text stays, even if the boxes differ a little."""
    frames = [(0.0, 0.0, 100.0, 100.0), (0.0, 0.0, 99.0, 100.0)]
    readings = [("EXIT", (20, 40, 60, 52), 0.9), ("EXIST", (38, 42, 62, 54), 0.4)]
    tiles = [
        TileResult(frame, OcrRegions(regions=[OcrRegion(text=text, quad=quad_of(box), score=score)]))
        for frame, (text, box, score) in zip(frames, readings, strict=True)
    ]
    assert [place.label for place in items_of(merge_results(tiles, (100, 100)))] == ["EXIT"]


@given(seed=st.integers(0, 100_000))
def test_words_come_line_by_line(seed: int) -> None:
    """Words are read line by line from left to right, even if the words of a line differ a little
    in height."""
    dice = random.Random(seed)
    words, boxes = list[str](), list[Box]()
    for line in range(4):
        for column in range(dice.randint(1, 4)):
            top = 60 * line + dice.randint(-4, 4) + 10
            words.append(f"{line}{column}")
            boxes.append(
                (90.0 * column, top, 90.0 * column + dice.randint(20, 80), top + dice.randint(16, 22))
            )
    order = dice.sample(range(len(words)), len(words))
    regions = [OcrRegion(text=words[index], quad=quad_of(boxes[index])) for index in order]
    lines = [line.split() for line in text_of(OcrRegions(regions=regions)).splitlines()]
    assert [word for line in lines for word in line] == words
    assert all(first[0][0] < second[0][0] for first, second in pairwise(lines))


@pytest.mark.parametrize(
    ("token", "result", "content"),
    [
        ("<OCR>", Text(text="a\nb"), "a\nb"),
        ("<OD>", BOXES, {"bboxes": [[1, 2, 3, 4]], "labels": ["é"]}),
        ("<OCR_WITH_REGION>", QUADS, {"quad_boxes": [[1, 2, 3, 2, 3, 4, 1, 4]], "labels": ["a"]}),
        ("<OPEN_VOCABULARY_DETECTION>", BOXES,
         {"bboxes": [[1, 2, 3, 4]], "bboxes_labels": ["é"], "polygons": [], "polygons_labels": []}),
        ("<OPEN_VOCABULARY_DETECTION>", OUTLINES,
         {"bboxes": [], "bboxes_labels": [], "polygons": [[[1, 2, 3, 2, 3, 4]]], "polygons_labels": ["a"]}),
    ],
)  # fmt: skip
def test_the_originals_form_has_its_keys(token: str, result: Result, content: object) -> None:
    """The original's form has the keys of `post_process_generation` for each task."""
    assert original_form(TASKS[token], result) == content
