"""The demo's measures: known values of overlaps, precision and grades; perfect answers get full marks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from florence import parse_answer
from florence.demo.evaluation.boxes import Found, evaluate_boxes
from florence.demo.evaluation.captions import Words, cider, tokenize, words_here
from florence.demo.evaluation.grading import Graded, grade
from florence.demo.evaluation.metrics import (
    GROUPS,
    Judged,
    area_overlap,
    area_under_curve,
    box_overlap,
    expected_calibration_error,
    reliability,
    word_accuracy,
)
from florence.demo.world.drawing import draw_lots
from florence.demo.world.ground_truth import (
    Question,
    caption,
    detailed_caption,
    more_detailed_caption,
    questions,
)
from florence.demo.world.scenes import Limits, Scene, Split, scene_rng
from florence.demo.world.typeface import Typeface
from florence.types.results import Detection, Detections, Text
from florence.types.tasks import TASKS

pytestmark = pytest.mark.usefixtures("evaluators")

SQUARE = (0.0, 0.0, 10.0, 10.0)
APART = (50.0, 50.0, 60.0, 60.0)


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    typeface = Typeface()
    rows = []
    for index in range(25):
        rng = scene_rng(Split.SAMPLES, 8, index)
        scene = draw_lots(rng, typeface, Limits(things=(1, 5), word_share=0.8))
        rows += [(scene, question) for question in questions(scene, rng)]
    return rows


def test_overlaps_of_known_boxes() -> None:
    """Equal boxes overlap by 1, halves by their ratio, apart or flat or turned-over ones by 0."""
    assert box_overlap(SQUARE, SQUARE) == 1.0
    assert box_overlap((0, 0, 5, 10), SQUARE) == pytest.approx(0.5)
    assert box_overlap((5, 0, 15, 10), SQUARE) == pytest.approx(1 / 3)
    assert box_overlap((10, 0, 20, 10), SQUARE) == 0.0
    assert box_overlap((3, 3, 3, 8), SQUARE) == 0.0
    assert box_overlap((10, 10, 0, 0), SQUARE) == 0.0


def test_overlaps_of_known_areas() -> None:
    """A polygon overlaps itself by 1, a triangle its square by a half, two halves the whole by 1; fewer than
    three corners, or none, by 0."""
    square = [0, 0, 100, 0, 100, 100, 0, 100]
    halves = [[0, 0, 50, 0, 50, 100, 0, 100], [50, 0, 100, 0, 100, 100, 50, 100]]
    assert area_overlap([square], [square], (120, 110)) == 1.0
    assert area_overlap([[0, 0, 100, 0, 0, 100]], [square], (120, 110)) == pytest.approx(0.5, abs=0.01)
    assert area_overlap(halves, [square], (120, 110)) == pytest.approx(1.0, abs=0.02)
    assert area_overlap([[0, 0, 100, 100]], [square], (120, 110)) == 0.0
    assert area_overlap([], [square], (120, 110)) == 0.0


def test_average_precision_by_hand() -> None:
    """Right, wrong, right of three truths: at 101 levels of recall, 34 have precision 1 and 33 have 2/3."""
    truth = [Found(0, "a", SQUARE), Found(1, "a", SQUARE), Found(2, "a", SQUARE)]
    found = [Found(0, "a", SQUARE, 0.9), Found(1, "a", APART, 0.8), Found(2, "a", SQUARE, 0.7)]
    figures, right = evaluate_boxes(found, truth)
    assert right == [True, False, True]
    assert figures["mAP@50"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert figures["mAP@50:95"] == pytest.approx(figures["mAP@50"])  # they fit wholly or not at all
    shares = [figures[name] for name in ("recall@50", "precision@50", "AR@50:95")]
    assert shares == pytest.approx([2 / 3] * 3)


def test_a_truth_is_found_once() -> None:
    """A second box on a taken truth is wrong, and so is the worse-scored of two, whichever comes first."""
    doubled = [Found(0, "a", SQUARE, 0.8), Found(0, "a", SQUARE, 0.9)]
    figures, right = evaluate_boxes(doubled, [Found(0, "a", SQUARE)])
    assert right == [False, True]
    assert (figures["mAP@50"], figures["precision@50"]) == pytest.approx((1.0, 0.5))


def test_boxes_that_fit_loosely_are_right_at_50_only() -> None:
    """An overlap of 0.62 counts at three of COCO's ten overlaps, and not at 0.75."""
    figures, right = evaluate_boxes([Found(0, "a", (0, 0, 6.2, 10), 1.0)], [Found(0, "a", SQUARE)])
    assert right == [True]
    assert (figures["mAP@50"], figures["mAP@75"]) == pytest.approx((1.0, 0.0))
    assert figures["mAP@50:95"] == pytest.approx(0.3)


def test_mean_average_precision_is_over_the_truths_labels() -> None:
    """One label found and one missed give a half; a label that is not in the truth costs precision alone."""
    truth = [Found(0, "a", SQUARE), Found(0, "b", SQUARE)]
    figures, right = evaluate_boxes([Found(0, "a", SQUARE, 0.9), Found(0, "c", SQUARE, 0.9)], truth)
    assert right == [True, False]
    assert figures["mAP@50"] == pytest.approx(0.5)
    assert figures["recall@50"] == figures["precision@50"] == 0.5


def test_nothing_has_no_figures() -> None:
    """nan without truth, and of nothing at all; truth without boxes is all missed."""
    assert all(math.isnan(value) for value in evaluate_boxes([], [])[0].values())
    assert math.isnan(evaluate_boxes([Found(0, "a", SQUARE, 0.9)], [])[0]["mAP@50"])
    missed = evaluate_boxes([], [Found(0, "a", SQUARE)])[0]
    assert (missed["mAP@50:95"], missed["recall@50"]) == (0.0, 0.0)


def test_words_count_once() -> None:
    """A word read twice is right once."""
    assert word_accuracy("OPEN OPEN", "OPEN EXIT") == (1, 2)
    assert word_accuracy("", "OPEN") == (0, 1)


def test_cider_of_known_captions() -> None:
    """Right captions of four words or more come to 10, wrong and empty ones to 0; one alone has none.
    Capitals and full stops count for nothing."""
    right = ["a small red star", "the large blue ring"]
    assert cider(right, right, Words.PLAIN) == (pytest.approx(10), pytest.approx(10))
    assert cider(["A small red star.", "the LARGE blue ring"], right, Words.PLAIN)[0] == pytest.approx(10)
    assert cider(["no", ""], right, Words.PLAIN)[0] == 0.0
    assert 2 < cider(["a small red moon", "the large blue ring"], right, Words.PLAIN)[0] < 10
    assert math.isnan(cider(right[:1], right[:1], Words.PLAIN)[0])


def test_both_tokenizers_make_the_same_words(asked: list[tuple[Scene, Question]]) -> None:
    """Of this world's captions: CIDEr is the same on a machine with Java and on one without."""
    if words_here() is not Words.PTB:
        pytest.skip("the Penn Treebank tokenizer needs Java")
    scenes = [scene for scene, _ in asked[::14]]
    texts = [say(scene) for scene in scenes for say in (caption, detailed_caption, more_detailed_caption)]
    texts.insert(3, "")
    assert tokenize(texts, Words.PTB) == tokenize(texts, Words.PLAIN)


def test_without_java_words_are_made_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a Java that fails is an error, not another figure."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert words_here() is Words.PLAIN
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(OSError, match="Java's tokenizer answered"):
        tokenize(["a star", "a ring"], Words.PTB)


def test_scores_that_are_probabilities_have_no_error() -> None:
    """Nine of ten right at 0.9 is calibrated; all right at 0.2 is off by 0.8; nothing has no error."""
    fair = [Judged(0.9, number % 10 != 0) for number in range(100)]
    assert expected_calibration_error(fair) == pytest.approx(0.0)
    assert expected_calibration_error([Judged(0.2, True)] * 7) == pytest.approx(0.8)
    assert math.isnan(expected_calibration_error([]))


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    """Of a right and a wrong item each; equal scores count half."""
    dice = random.Random(5)
    judged = [Judged(dice.choice([0.1, 0.2, 0.5, 0.9]), dice.random() < 0.6) for _ in range(60)]
    right, wrong = ([one.score for one in judged if one.right is kind] for kind in (True, False))
    pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    assert area_under_curve(judged) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(area_under_curve([Judged(0.5, True)]))


def test_groups_go_from_low_scores_to_high() -> None:
    """All things are in a group, groups are of like size, and each has its own mean score."""
    judged = [Judged(number / 25, number > 12) for number in reversed(range(25))]
    rows = reliability(judged)
    assert len(rows) == GROUPS
    assert sum(row.count for row in rows) == 25
    assert {row.count for row in rows} == {2, 3}
    assert [row.score for row in rows] == sorted(row.score for row in rows)
    assert (rows[0].right, rows[-1].right) == (0.0, 1.0)


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_gets_full_marks_and_silence_none(asked: list[tuple[Scene, Question]], task: str) -> None:
    """Answers written from the truth are graded 1 by every figure, or what CIDEr has for the truth; empty
    answers 0."""
    right, silent = _answered(asked, task, lambda answer: answer), _answered(asked, task, lambda answer: "")
    best = grade(task, right).figures
    assert best.pop("questions") == len(right) > 0
    assert math.isnan(best.pop("ECE"))  # texts without log-probabilities have no scores
    full = {"invented": 0.0, "CIDEr": best.pop("CIDEr_of_truth", 0.0)}
    for name, value in best.items():
        # Answers' locations are bins: boxes of small things fit to 0.95 only nearly. A polygon of few corners
        # covers a curve's outline only nearly.
        near = 0.1 if name in ("mIoU", "mAP@50:95", "AR@50:95") else 1e-9
        assert value == pytest.approx(full.get(name, 1.0), abs=near), name
    for name, value in grade(task, silent).figures.items():
        assert name in ("questions", "CIDEr_of_truth") or value == 0.0 or math.isnan(value), name


def _answered(asked: list[tuple[Scene, Question]], task: str, write: Callable[[str], str]) -> list[Graded]:
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
    """Of two boxes answered, the one on its thing is right, the one elsewhere is not; a text is right when it
    equals the truth."""
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
    rng = scene_rng(Split.SAMPLES, 8, 0)
    scene = draw_lots(rng, Typeface(), Limits(things=(1, 1), word_share=0.0))
    return scene, next(row for row in questions(scene, rng) if row.task == "<OD>")


def test_an_absent_thing_that_was_found_is_invented() -> None:
    """And its box is judged wrong, whatever its score."""
    scene, question = _scene_with_box()
    absent = replace(question, task="<OPEN_VOCABULARY_DETECTION>", text="a ghost", things=())
    found = Detections(detections=[Detection(label="a ghost", box=scene.things[0].box, score=0.9)])
    graded = grade(
        absent.task, [Graded(scene, absent, found), Graded(scene, absent, Detections(detections=[]))]
    )
    assert graded.figures["invented"] == 0.5
    assert graded.judged == [Judged(0.9, False)]
