"""Grades of the demo world's answers: the truth gets the best grade, and empty answers the worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from florence import parse_answer
from florence.demo.evaluation.grading import Graded, grade
from florence.demo.world.drawing import random_scene
from florence.demo.world.ground_truth import (
    Question,
    caption,
    detailed_caption,
    more_detailed_caption,
    questions,
)
from florence.demo.world.scenes import Limits, Scene, Split, scene_rng
from florence.demo.world.typeface import Typeface
from florence.evaluation.measures.calibration import Judged
from florence.evaluation.measures.captions import Words, tokenize, words_here
from florence.types.results import Detection, Detections, Text
from florence.types.tasks import TASKS

pytestmark = pytest.mark.usefixtures("evaluators")


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    """Scenes with their questions."""
    typeface = Typeface()
    rows = []
    for index in range(25):
        rng = scene_rng(Split.SAMPLES, 8, index)
        scene = random_scene(rng, typeface, Limits(things=(1, 5), word_share=0.8))
        rows += [(scene, question) for question in questions(scene, rng)]
    return rows


def test_both_tokenizers_make_the_same_words(asked: list[tuple[Scene, Question]]) -> None:
    """Both tokenizers split this world's captions alike, so CIDEr does not depend on Java."""
    if words_here() is not Words.PTB:
        pytest.skip("the Penn Treebank tokenizer needs Java")
    scenes = [scene for scene, _ in asked[::14]]
    texts = [say(scene) for scene in scenes for say in (caption, detailed_caption, more_detailed_caption)]
    texts.insert(3, "")
    assert tokenize(texts, Words.PTB) == tokenize(texts, Words.PLAIN)


@pytest.mark.parametrize("task", TASKS)
def test_true_answers_get_the_best_grade_and_empty_ones_the_worst(
    asked: list[tuple[Scene, Question]], task: str
) -> None:
    """True answers get 1 in every figure, or the truth's own CIDEr; empty answers get 0."""
    right, silent = _answered(asked, task, lambda answer: answer), _answered(asked, task, lambda answer: "")
    best = grade(task, right).figures
    assert best.pop("questions") == len(right) > 0
    assert math.isnan(best.pop("ECE"))  # texts without log-probabilities have no scores
    full = {"invented": 0.0, "CER": 0.0, "CIDEr": best.pop("CIDEr_of_truth", 0.0)}
    for name, value in best.items():
        # Locations are bins, so boxes of small things do not always fit to 0.95. A polygon of few corners
        # covers a curved outline only approximately.
        near = 0.1 if name in ("mIoU", "oIoU", "mAP@50:95", "AR@50:95") else 1e-9
        assert value == pytest.approx(full.get(name, 1.0), abs=near), name
    for name, value in grade(task, silent).figures.items():
        none = {"CER": 1.0}.get(name, 0.0)
        assert name in ("questions", "CIDEr_of_truth") or value == none or math.isnan(value), name


def _answered(asked: list[tuple[Scene, Question]], task: str, write: Callable[[str], str]) -> list[Graded]:
    """The questions of a task with answers written by this function."""
    return [
        Graded(
            scene,
            question,
            parse_answer(
                task, f"<s>{write(question.answer)}</s>", image_size=(scene.width, scene.height)
            ).result,
        )
        for scene, question in asked
        if question.task == task
    ]


def test_each_box_is_judged_with_its_score() -> None:
    """A box on its thing is judged right and another wrong, each with its score; a text is right if it equals
    the truth."""
    scene, question = _scene_with_box()
    thing = scene.things[question.things[0]]
    boxes = [
        Detection(label=thing.shape, box=thing.box, score=0.8),
        Detection(label=thing.shape, box=(0, 0, 1, 1), score=0.3),
    ]
    judged = grade("<OD>", [Graded(scene, question, Detections(detections=boxes))]).judged
    assert judged == [Judged(0.8, True), Judged(0.3, False)]
    naming = replace(question, task="<REGION_TO_CATEGORY>", answer="star")
    rows = [Graded(scene, naming, Text(text=text, score=0.5)) for text in ("star", "moon")]
    assert grade("<REGION_TO_CATEGORY>", rows).judged == [Judged(0.5, True), Judged(0.5, False)]


def _scene_with_box() -> tuple[Scene, Question]:
    """A scene with one thing, and its question about boxes."""
    rng = scene_rng(Split.SAMPLES, 8, 0)
    scene = random_scene(rng, Typeface(), Limits(things=(1, 1), word_share=0.0))
    return scene, next(row for row in questions(scene, rng) if row.task == "<OD>")


def test_an_absent_thing_that_was_found_is_invented() -> None:
    """A box for an absent thing counts as invented and is judged wrong."""
    scene, question = _scene_with_box()
    absent = replace(question, task="<OPEN_VOCABULARY_DETECTION>", text="a ghost", things=())
    found = Detections(detections=[Detection(label="a ghost", box=scene.things[0].box, score=0.9)])
    graded = grade(
        absent.task, [Graded(scene, absent, found), Graded(scene, absent, Detections(detections=[]))]
    )
    assert graded.figures["invented"] == 0.5
    assert graded.judged == [Judged(0.9, False)]
