"""The demo's measures: known values of overlaps, precision and grades; perfect answers get full marks."""

from __future__ import annotations

import math

import pytest

from florence import parse_answer
from florence.demo.batches import draw_lots
from florence.demo.grading import Graded, grade
from florence.demo.metrics import (
    Found,
    average_precision,
    box_overlap,
    mean_average_precision,
    polygon_overlap,
    word_accuracy,
)  # fmt: skip
from florence.demo.scenes import Limits, Split, scene_rng
from florence.demo.truths import questions
from florence.demo.typeface import Typeface
from florence.tasks import TASKS

SQUARE = (0.0, 0.0, 10.0, 10.0)
_LOWER_IS_BETTER = {"invented": 0.0}


def test_overlaps_of_known_boxes() -> None:
    """Equal boxes overlap by 1, halves by their ratio, apart or flat ones by 0."""
    assert box_overlap(SQUARE, SQUARE) == 1.0
    assert box_overlap(SQUARE, (0, 0, 5, 10)) == pytest.approx(0.5)
    assert box_overlap(SQUARE, (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_overlap(SQUARE, (10, 0, 20, 10)) == 0.0
    assert box_overlap(SQUARE, (3, 3, 3, 8)) == 0.0


def test_overlaps_of_known_polygons() -> None:
    """A polygon overlaps itself by 1, a triangle its square by a half; fewer than three corners by 0."""
    square = [0, 0, 10, 0, 10, 10, 0, 10]
    assert polygon_overlap(square, square) == 1.0
    assert polygon_overlap(square, [0, 0, 10, 0, 0, 10]) == pytest.approx(0.5, abs=0.01)
    assert polygon_overlap(square, [0, 0, 10, 10]) == 0.0


def test_average_precision_by_hand() -> None:
    """Right, wrong, right of three truths: 1/3 + 2/3 * 1/3; a second box on a taken truth is wrong."""
    apart = (50.0, 50.0, 60.0, 60.0)
    truth = [Found(0, "a", SQUARE), Found(1, "a", SQUARE), Found(2, "a", SQUARE)]
    found = [Found(0, "a", SQUARE, 0.9), Found(1, "a", apart, 0.8), Found(2, "a", SQUARE, 0.7)]
    assert average_precision(found, truth) == pytest.approx(1 / 3 + 2 / 3 / 3)
    doubled = [Found(0, "a", SQUARE, 0.9), Found(0, "a", SQUARE, 0.8)]
    assert average_precision(doubled, truth[:1]) == 1.0
    assert average_precision(doubled[::-1], truth[:2]) == 0.5
    assert math.isnan(average_precision(found, []))


def test_mean_average_precision_is_over_labels() -> None:
    """One label found and one missed give a half; a label that is not in the truth does not count."""
    truth = [Found(0, "a", SQUARE), Found(0, "b", SQUARE)]
    found = [Found(0, "a", SQUARE, 0.9), Found(0, "c", SQUARE, 0.9)]
    assert mean_average_precision(found, truth) == 0.5


def test_words_count_once() -> None:
    """A word read twice is right once."""
    assert word_accuracy("OPEN OPEN", "OPEN EXIT") == (1, 2)
    assert word_accuracy("", "OPEN") == (0, 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_gets_full_marks_and_silence_none(task: str) -> None:
    """Answers written from the truth are graded 1 by every figure; empty answers 0."""
    typeface = Typeface()
    right, silent = [], []
    for index in range(25):
        rng = scene_rng(Split.SAMPLES, 8, index)
        scene = draw_lots(rng, typeface, Limits(things=(1, 5), word_share=0.8))
        for question in questions(scene, rng):
            if question.task == task:
                for text, rows in ((question.answer, right), ("", silent)):
                    result = parse_answer(
                        task, f"<s>{text}</s>", image_size=(scene.width, scene.height)
                    ).result
                    rows.append(Graded(scene, question, result))
    for name, value in grade(task, right).items():
        # A polygon of few corners covers a curve's outline only nearly.
        assert value == pytest.approx(_LOWER_IS_BETTER.get(name, 1.0), abs=0.1 if name == "mIoU" else 1e-9), (
            name
        )
    for name, value in grade(task, silent).items():
        assert value == 0.0 or math.isnan(value), name
