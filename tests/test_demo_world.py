"""The demo world: scenes, drawing and truth, without a model."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from florence import parse_answer
from florence.demo.world.backgrounds import background
from florence.demo.world.drawing import draw_scene, random_scene, thing_mask
from florence.demo.world.ground_truth import Question, brief, full, questions
from florence.demo.world.hard_scenes import clip
from florence.demo.world.scenes import LEFT_GAP, MAX_OVERLAP, Limits, Scene, Split, make_scene, scene_rng
from florence.demo.world.shapes import unit_outline
from florence.demo.world.tokenizer import make_tokenizer
from florence.demo.world.typeface import FACES, Typeface
from florence.demo.world.vocabulary import SHAPES, TEXTURES
from florence.errors import MissingLibrary
from florence.export.geometry import polygon_area
from florence.types.results import Detections, OcrRegions, Segmentation, Text
from florence.types.tasks import TASKS, Kind

WIDE = Limits(things=(1, 6), word_share=0.6)


@pytest.fixture(scope="module")
def typeface() -> Typeface:
    """The demo world's typeface."""
    return Typeface()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The demo's tokenizer."""
    return make_tokenizer()


@pytest.fixture(scope="module")
def asked(typeface: Typeface) -> list[tuple[Scene, list[Question]]]:
    """Eighty scenes with their questions."""
    rows = []
    for index in range(80):
        rng = scene_rng(Split.SAMPLES, 5, index)
        scene = random_scene(rng, typeface, WIDE)
        rows.append((scene, questions(scene, rng)))
    return rows


def _same(first: Scene, second: Scene) -> bool:
    """True if both scenes have the same size, colours and boxes."""
    return (first.width, first.height, first.base, first.texture_seed) == (
        second.width, second.height, second.base, second.texture_seed,
    ) and [thing.box for thing in first.things] == [thing.box for thing in second.things]  # fmt: skip


def test_a_seed_gives_the_same_picture_each_time() -> None:
    """The same split, seed and index give the same scene and pixels, also with another typeface object."""
    for index in range(6):
        pictures = []
        for typeface in (Typeface(), Typeface()):
            scene = make_scene(scene_rng(Split.HELD_OUT, 3, index), typeface, WIDE)
            pictures.append(np.asarray(draw_scene(scene, typeface)))
        assert np.array_equal(*pictures)


def test_a_background_leaves_its_things_to_be_seen(typeface: Typeface) -> None:
    """Each texture gives another picture with the scene's tone, and behind 98% of the things a colour at
    least 60 of 441 away from theirs."""
    scenes = [make_scene(scene_rng(Split.HELD_OUT, 5, index), typeface, WIDE) for index in range(20)]
    drawn: dict[str, list[NDArray[np.float32]]] = {}
    for texture in TEXTURES:
        distances = []
        for scene in scenes:
            rng = np.random.default_rng(scene.texture_seed)
            empty = background(replace(scene, texture=texture), rng).clip(0, 255)
            drawn.setdefault(texture, []).append(empty)
            assert (empty.mean() > 128) == (scene.tone == "light")
            for thing in scene.things:
                left, top, right, bottom = map(int, thing.box)
                behind = empty[top:bottom, left:right].mean(axis=(0, 1))
                distances.append(np.linalg.norm(behind - np.array(thing.rgb)))
        assert np.quantile(distances, 0.02) > 60, texture
    for first, second in itertools.combinations(drawn.values(), 2):
        assert not any(map(np.array_equal, first, second))


def test_words_are_printed_in_every_face(typeface: Typeface) -> None:
    """All faces occur, and each draws a word differently but with a similar height."""
    scenes = [make_scene(scene_rng(Split.HELD_OUT, 4, index), typeface, WIDE) for index in range(60)]
    assert {thing.face for scene in scenes for thing in scene.things if thing.text} == set(FACES)
    inks = [typeface.ink("HOTEL", face, 40, 0.0) for face in FACES]
    assert len({ink.tobytes() for ink in inks}) == len(FACES)
    heights = [ink.height for ink in inks]
    assert max(heights) <= 1.25 * min(heights)


def test_a_face_that_is_not_there_names_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fonts' packages the error names what to install."""
    monkeypatch.setitem(sys.modules, "font_caladea", None)
    with pytest.raises(MissingLibrary, match=r"needs font-caladea.*\"\.\[demo\]\""):
        Typeface()


def test_streams_share_no_scene(typeface: Typeface) -> None:
    """Scenes of different splits, seeds or indexes differ, so training and held-out scenes are disjoint."""
    keys = [(split, seed, index) for split in Split for seed in (0, 1) for index in (0, 1, 2)]
    scenes = [make_scene(scene_rng(*key), typeface, WIDE) for key in keys]
    for number, scene in enumerate(scenes):
        assert not any(_same(scene, other) for other in scenes[:number])


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_centred_polygons_with_area(shape: str) -> None:
    """Every shape's outline surrounds the origin, reaches about one unit and fills a quarter of its box or
    more."""
    outline = unit_outline(shape)
    assert 0.85 <= np.hypot(*outline.T).max() <= 1.2
    width, height = np.ptp(outline, axis=0)
    assert polygon_area(outline.ravel().tolist()) > 0.25 * width * height


def test_boxes_hold_the_drawn_pixels_tightly(
    asked: list[tuple[Scene, list[Question]]], typeface: Typeface
) -> None:
    """A thing's pixels lie inside its true box and reach each side of it, within 1.5 pixels.

    The box of a rotated word is that of its frame, so its letters need not reach the corners.
    """
    for scene, _ in asked:
        for thing in scene.things:
            mask, (left, top) = thing_mask(thing, typeface)
            rows, columns = np.nonzero(np.asarray(mask) >= 32)
            drawn = np.array([columns.min() + left, rows.min() + top, columns.max() + left, rows.max() + top])
            drawn += np.array([0, 0, 1, 1])  # a pixel ends where the next one begins
            outside = (drawn - np.array(thing.box)) * np.array([-1, -1, 1, 1])
            assert outside.max() <= 1.5, thing
            if not (thing.text and thing.turn):
                assert outside.min() >= -1.5, thing


def test_things_stand_inside_and_apart(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Every thing lies inside its picture, left edges are clearly apart, and things hardly overlap."""
    for scene, _ in asked:
        boxes = [thing.box for thing in scene.things]
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 <= scene.width
            assert 0 <= y1 < y2 <= scene.height
        lefts = [box[0] for box in boxes]
        assert lefts == sorted(lefts)
        assert all(b - a >= LEFT_GAP * scene.width * 0.999 for a, b in itertools.pairwise(lefts))
    assert MAX_OVERLAP < 0.5


def test_all_fifteen_tasks_are_asked(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Every task occurs; a scene without words has all tasks except the three about words."""
    on_words = {"<OCR>", "<OCR_WITH_REGION>", "<REGION_TO_OCR>"}
    for scene, row in asked:
        missing = set(TASKS) - {question.task for question in row}
        assert missing == (set() if any(thing.text for thing in scene.things) else on_words)
    assert {question.task for _, row in asked for question in row} == set(TASKS)


def test_answers_read_back(asked: list[tuple[Scene, list[Question]]]) -> None:
    """parse_answer finds in each answer's text its labels, and its boxes within half a bin."""
    for scene, row in asked:
        for question in row:
            size = (scene.width, scene.height)
            result = parse_answer(question.task, f"</s><s>{question.answer}</s>", image_size=size).result
            _check(scene, question, result)


def _check(scene: Scene, question: Question, result: object) -> None:
    """Check a parsed answer against the scene."""
    things = [scene.things[index] for index in question.things]
    if TASKS[question.task].kind is Kind.TEXT:
        assert isinstance(result, Text)
        assert result.text == question.answer
    elif isinstance(result, Detections):
        assert len(result.detections) == len(things), question
        for found, thing in zip(result.detections, things, strict=True):
            assert found.label in question.answer
            _near(scene, found.box, thing.box)
    elif isinstance(result, OcrRegions):
        assert [region.text for region in result.regions] == [thing.text for thing in things]
        for region, thing in zip(result.regions, things, strict=True):
            _near(scene, region.quad, thing.outline.ravel().tolist())
    else:
        assert isinstance(result, Segmentation)
        (instance,) = result.instances
        (polygon,) = instance.polygons
        _near(scene, polygon, things[0].polygon.ravel().tolist())


def _near(scene: Scene, found: object, truth: object) -> None:
    """Check that points agree within half a bin."""
    found_pixels, true_pixels = np.array(found).reshape(-1, 2), np.array(truth).reshape(-1, 2)
    half_bins = np.array([scene.width, scene.height]) / 1000 * 0.5
    assert (np.abs(found_pixels - true_pixels) <= half_bins + 1e-6).all()


def test_answers_can_be_generated(asked: list[tuple[Scene, list[Question]]], tokenizer: Tokenizer) -> None:
    """No answer repeats three tokens in a row, so no_repeat_ngram_size 3 can't forbid any."""
    for _, row in asked:
        for question in row:
            ids = [2, *tokenizer.encode(question.answer).ids]
            runs = list(zip(ids, ids[1:], ids[2:], strict=False))
            assert len(set(runs)) == len(runs), question


def test_tokenizer_writes_every_answer_back(
    asked: list[tuple[Scene, list[Question]]], tokenizer: Tokenizer
) -> None:
    """Decoding the encoded answer gives its text; names and printed words are single tokens, and ids are
    BART's."""
    for _, row in asked:
        for question in row:
            ids = tokenizer.encode(question.answer).ids
            assert tokenizer.decode(ids, skip_special_tokens=False) == f"<s>{question.answer}</s>"
            words = re.findall(r"<loc_\d+>|\w+|[^\w\s]", question.answer)
            assert len(ids) == len(words) + 2, question
    assert [tokenizer.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    base = tokenizer.token_to_id("<mask>")
    assert tokenizer.token_to_id("<loc_999>") == base + 1 + 4 + 999


def _named(scene: Scene, phrase: str) -> tuple[int, ...]:
    """The things that match a phrase without a relation."""
    return tuple(
        index
        for index, thing in enumerate(scene.things)
        if phrase in (thing.shape, brief(thing), full(thing))
    )


def _told(scene: Scene, phrase: str) -> tuple[int, ...]:
    """The things that match a referring expression, whose relation is looked up in the scene."""
    found = re.fullmatch(r"the (.+) (left of|right of|above|below) the (.+)", phrase)
    if found is None:
        return _named(scene, phrase.removeprefix("the "))
    first, where, second = found.groups()
    (other,) = _named(scene, second)
    axis, side = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[where]
    edge = scene.things[other].centre[axis]
    return tuple(
        index
        for index in _named(scene, first)
        if index != other and side * (scene.things[index].centre[axis] - edge) > 0
    )


def test_a_question_names_exactly_the_things_of_its_answer(
    asked: list[tuple[Scene, list[Question]]],
) -> None:
    """A referring expression matches exactly one thing; an open-vocabulary phrase matches exactly the boxed
    things, or none.

    Every direction and every kind of absence occurs.
    """
    directions: set[str] = set()
    absences: set[int] = set()
    for scene, about in asked:
        for question in about:
            text = question.text or ""
            if question.task == "<REFERRING_EXPRESSION_SEGMENTATION>":
                assert _told(scene, text) == question.things, (text, scene)
                directions.update(re.findall(r" (left|right|above|below) ", text))
            elif question.task == "<OPEN_VOCABULARY_DETECTION>":
                assert _named(scene, text) == question.things, (text, scene)
                assert bool(question.answer) == bool(question.things)
                if not question.things:
                    absences.add(len(text.split()))
    assert directions == {"left", "right", "above", "below"}
    assert absences == {1, 2, 3}


def test_hard_scenes_are_cut_by_the_edge_and_badly_taken(typeface: Typeface) -> None:
    """The truth of a thing cut by the edge is its visible part.

    Usual scenes have no such things, and the same seed draws the same picture.
    """
    hard = Limits(things=(4, 6), hard=True)
    scenes = [make_scene(scene_rng(Split.HELD_OUT, 3, index), typeface, hard) for index in range(40)]
    cut = [(thing, scene) for scene in scenes for thing in scene.things if thing.cut_polygon is not None]
    assert 5 < len(cut) < 100
    for thing, scene in cut:
        x1, y1, x2, y2 = thing.box
        assert min(x1, y1, scene.width - x2, scene.height - y2) == pytest.approx(0, abs=1e-6)
        for points in (thing.outline, thing.polygon):
            assert (points >= -1e-6).all()
            assert (points <= np.array((scene.width, scene.height)) + 1e-6).all()
    cameras = [scene.camera for scene in scenes]
    assert all(camera is not None for camera in cameras)
    again = make_scene(scene_rng(Split.HELD_OUT, 3, 0), typeface, hard)
    assert draw_scene(again, typeface).tobytes() == draw_scene(scenes[0], typeface).tobytes()
    usual = make_scene(scene_rng(Split.HELD_OUT, 3, 0), typeface, Limits(things=(4, 6)))
    assert usual.camera is None
    assert all(thing.cut_polygon is None for thing in usual.things)


def test_clipping_keeps_just_what_is_inside() -> None:
    """Clipping random triangles keeps their pixels inside the frame."""
    dice = np.random.default_rng(4)
    for _ in range(20):
        triangle = dice.uniform(-30, 90, (3, 2))
        masks = []
        for points in (triangle, clip(triangle, (60, 50))):
            image = Image.new("1", (60, 50))
            if len(points) > 2:
                ImageDraw.Draw(image).polygon([tuple(point) for point in points.tolist()], fill=1)
            masks.append(np.asarray(image)[1:-1, 1:-1])
        assert (masks[0] != masks[1]).mean() < 0.03
