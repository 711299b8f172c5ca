"""Known values of the measures: overlaps, precision, captions, texts and calibration."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from pycocotools.mask import frPyObjects

from florence.evaluation.measures.calibration import (
    GROUPS,
    Judged,
    area_under_curve,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from florence.evaluation.measures.captions import CaptionScores, Words, tokenize, words_here
from florence.evaluation.measures.figures import Figures
from florence.evaluation.measures.overlaps import area_overlap, areas, box_overlap
from florence.evaluation.measures.precision import AveragePrecision, PlacedThing
from florence.evaluation.measures.texts import anls, edits, leaves, vqa_accuracy, word_accuracy

pytestmark = pytest.mark.usefixtures("evaluators")

SQUARE = (0.0, 0.0, 10.0, 10.0)
APART = (50.0, 50.0, 60.0, 60.0)
FIRST, SECOND, THIRD = (0, ""), (1, ""), (2, "")


def evaluate_boxes(found: list[PlacedThing], truth: list[PlacedThing]) -> tuple[Figures, list[bool | None]]:
    """Figures of boxes in three pictures, and which boxes are right."""
    precision = AveragePrecision(found, truth)
    return precision.figures(np.ones(3, dtype=int)), precision.right


def cider(said: list[str], right: list[str]) -> float:
    """The CIDEr of captions with one reference each."""
    pictures, references = range(len(said)), [[text] for text in right]
    scores = CaptionScores(pictures, said, references, scores=["CIDEr"], words=Words.PLAIN)
    return scores.figures(np.ones(len(said), dtype=int))["CIDEr"]


def test_overlaps_of_known_boxes() -> None:
    """Equal boxes overlap by 1 and halves by their ratio; separate, flat or inverted boxes overlap by 0."""
    assert box_overlap(SQUARE, SQUARE) == 1.0
    assert box_overlap((0, 0, 5, 10), SQUARE) == pytest.approx(0.5)
    assert box_overlap((5, 0, 15, 10), SQUARE) == pytest.approx(1 / 3)
    assert box_overlap((10, 0, 20, 10), SQUARE) == 0.0
    assert box_overlap((3, 3, 3, 8), SQUARE) == 0.0
    assert box_overlap((10, 10, 0, 0), SQUARE) == 0.0


def test_overlaps_of_known_areas() -> None:
    """A polygon overlaps itself by 1, a triangle its square by a half, two halves the whole by 1.

    Fewer than three corners overlap by 0.
    """
    square = [0, 0, 100, 0, 100, 100, 0, 100]
    halves = [[0, 0, 50, 0, 50, 100, 0, 100], [50, 0, 100, 0, 100, 100, 50, 100]]
    assert area_overlap([square], [square], (120, 110)) == 1.0
    assert area_overlap([[0, 0, 100, 0, 0, 100]], [square], (120, 110)) == pytest.approx(0.5, abs=0.01)
    assert area_overlap(halves, [square], (120, 110)) == pytest.approx(1.0, abs=0.02)
    assert area_overlap([[0, 0, 100, 100]], [square], (120, 110)) == 0.0
    assert area_overlap([], [square], (120, 110)) == 0.0


def test_average_precision_by_hand() -> None:
    """A right, a wrong and a right box for three truths have precision 1 at 34 of 101 recall levels and 2/3
    at 33."""
    truth = [
        PlacedThing(FIRST, "a", SQUARE),
        PlacedThing(SECOND, "a", SQUARE),
        PlacedThing(THIRD, "a", SQUARE),
    ]
    found = [
        PlacedThing(FIRST, "a", SQUARE, 0.9),
        PlacedThing(SECOND, "a", APART, 0.8),
        PlacedThing(THIRD, "a", SQUARE, 0.7),
    ]
    figures, right = evaluate_boxes(found, truth)
    assert right == [True, False, True]
    assert figures["mAP@50"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert figures["mAP@50:95"] == pytest.approx(figures["mAP@50"])  # each box fits exactly or not at all
    shares = [figures[name] for name in ("recall@50", "precision@50", "AR@50:95")]
    assert shares == pytest.approx([2 / 3] * 3)


def test_a_truth_is_found_once() -> None:
    """A second box on a truth is wrong: of two boxes the one with the lower score, in any order."""
    doubled = [PlacedThing(FIRST, "a", SQUARE, 0.8), PlacedThing(FIRST, "a", SQUARE, 0.9)]
    figures, right = evaluate_boxes(doubled, [PlacedThing(FIRST, "a", SQUARE)])
    assert right == [False, True]
    assert (figures["mAP@50"], figures["precision@50"]) == pytest.approx((1.0, 0.5))


def test_boxes_that_fit_loosely_are_right_at_50_only() -> None:
    """An overlap of 0.62 counts at three of COCO's ten thresholds and not at 0.75."""
    figures, right = evaluate_boxes(
        [PlacedThing(FIRST, "a", (0, 0, 6.2, 10), 1.0)], [PlacedThing(FIRST, "a", SQUARE)]
    )
    assert right == [True]
    assert (figures["mAP@50"], figures["mAP@75"]) == pytest.approx((1.0, 0.0))
    assert figures["mAP@50:95"] == pytest.approx(0.3)


def test_mean_average_precision_is_over_the_truths_labels() -> None:
    """One label found and one missed give 0.5; a label absent from the truth lowers only precision."""
    truth = [PlacedThing(FIRST, "a", SQUARE), PlacedThing(FIRST, "b", SQUARE)]
    figures, right = evaluate_boxes(
        [PlacedThing(FIRST, "a", SQUARE, 0.9), PlacedThing(FIRST, "c", SQUARE, 0.9)], truth
    )
    assert right == [True, False]
    assert figures["mAP@50"] == pytest.approx(0.5)
    assert figures["recall@50"] == figures["precision@50"] == 0.5


def test_nothing_has_no_figures() -> None:
    """Figures without truth are nan; truth without boxes is entirely missed."""
    assert all(math.isnan(value) for value in evaluate_boxes([], [])[0].values())
    assert math.isnan(evaluate_boxes([PlacedThing(FIRST, "a", SQUARE, 0.9)], [])[0]["mAP@50"])
    missed = evaluate_boxes([], [PlacedThing(FIRST, "a", SQUARE)])[0]
    assert (missed["mAP@50:95"], missed["recall@50"]) == (0.0, 0.0)


def test_words_count_once() -> None:
    """A word that is read twice counts once."""
    assert word_accuracy("OPEN OPEN", "OPEN EXIT") == (1, 2)
    assert word_accuracy("", "OPEN") == (0, 1)


def test_cider_of_known_captions() -> None:
    """Right captions of four or more words get 10, wrong and empty ones 0, and a single caption nan; case and
    full stops are ignored."""
    right = ["a small red star", "the large blue ring"]
    assert cider(right, right) == pytest.approx(10)
    assert cider(["A small red star.", "the LARGE blue ring"], right) == pytest.approx(10)
    assert cider(["no", ""], right) == 0.0
    assert 2 < cider(["a small red moon", "the large blue ring"], right) < 10
    assert math.isnan(cider(right[:1], right[:1]))


def test_without_java_words_are_made_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Java the plain tokenizer is used, and a failing Java is an error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert words_here() is Words.PLAIN
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(OSError, match="Java's tokenizer answered"):
        tokenize(["a star", "a ring"], Words.PTB)


def test_scores_that_are_probabilities_have_no_error() -> None:
    """Nine of ten right at 0.9 is calibrated, all right at 0.2 is wrong by 0.8, and no items give nan."""
    fair = [Judged(0.9, number % 10 != 0) for number in range(100)]
    assert expected_calibration_error(fair) == pytest.approx(0.0)
    assert expected_calibration_error([Judged(0.2, True)] * 7) == pytest.approx(0.8)
    assert math.isnan(expected_calibration_error([]))


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    """The area is the share of pairs of a right and a wrong item in the right order; equal scores
    count half."""
    dice = random.Random(5)
    judged = [Judged(dice.choice([0.1, 0.2, 0.5, 0.9]), dice.random() < 0.6) for _ in range(60)]
    right, wrong = ([one.score for one in judged if one.right is kind] for kind in (True, False))
    pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    assert area_under_curve(judged) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(area_under_curve([Judged(0.5, True)]))


def test_groups_go_from_low_scores_to_high() -> None:
    """Groups have similar sizes, contain all items and ascend by score."""
    judged = [Judged(number / 25, number > 12) for number in reversed(range(25))]
    rows = reliability(judged)
    assert len(rows) == GROUPS
    assert sum(row.count for row in rows) == 25
    assert {row.count for row in rows} == {2, 3}
    assert [row.score for row in rows] == sorted(row.score for row in rows)
    assert (rows[0].right, rows[-1].right) == (0.0, 1.0)


def test_a_mask_is_the_polygon_that_it_was_made_of() -> None:
    """A plain and a compressed run-length code cover the area of their polygon."""
    square, half = [[10, 10, 50, 10, 50, 50, 10, 50]], [[10, 10, 30, 10, 30, 50, 10, 50]]
    column = [10 * 60 + 10, 40] + [20, 40] * 39  # column by column of a picture of 100 x 60
    plain = {"counts": [*column, 60 * 100 - sum(column)], "size": [60, 100]}
    compressed = frPyObjects(plain, 60, 100)
    compressed["counts"] = compressed["counts"].decode()  # text, as in JSON
    for code in (plain, compressed):
        assert area_overlap(square, code, (100, 60)) == pytest.approx(1.0, abs=0.03)
        assert area_overlap(half, code, (100, 60)) == pytest.approx(0.5, abs=0.03)
    assert areas(half, square, (100, 60)) == pytest.approx((800, 1600), rel=0.05)
    assert areas([], square, (100, 60)) == (0.0, pytest.approx(1600, rel=0.05))


def distance(a: str, b: str) -> int:
    """The Levenshtein distance, by its definition."""
    if not a or not b:
        return len(a or b)
    changed = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, changed)


def test_wrong_characters_are_the_least_number_of_edits() -> None:
    """`edits` equals the Levenshtein distance for random and empty texts."""
    dice = random.Random(3)
    for _ in range(40):
        a, b = ("".join(dice.choices("ab ", k=dice.randint(0, 6))) for _ in range(2))
        assert edits(a, b) == distance(a, b)
    assert edits("x" * 90, "y" + "x" * 100) == 11


def test_anls_of_known_answers() -> None:
    """ANLS is 1 for a right answer in any case, uses the nearest of several, and is 0 if half or more is
    wrong."""
    assert anls("Mount  Rainier", ["mount rainier"]) == 1.0
    assert anls("1991", ["1990", "nothing like it"]) == pytest.approx(0.75)
    assert anls("19", ["1990"]) == 0.0
    assert anls("", ["1990"]) == 0.0


def test_vqa_accuracy_of_known_answers() -> None:
    """An answer gets 1 if four of ten people give it, 0.9 for three, 0.6 for two and 0.3 for one.

    This is the mean over the choices of nine of them. With three answers or fewer, any of them is right.
    """
    others = [f"no {letter}" for letter in "abcdefghij"]
    for alike, expected in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        assert vqa_accuracy("yes", ["yes"] * alike + others[alike:]) == pytest.approx(expected)
    assert vqa_accuracy("two dogs", ["2 dogs"]) == 1.0
    assert vqa_accuracy("The dog's bed.", ["dogs bed"]) == 1.0
    assert vqa_accuracy("1,000.5 m", ["1000.5 m"]) == 1.0
    assert vqa_accuracy("cat", ["dog"]) == 0.0


def test_fields_are_told_by_path_and_value() -> None:
    """Numbers are compared by value, texts without extra white space, arrays without order; kinds are
    distinct."""
    assert leaves({"a": {"b": [1, "x  y"]}}) == leaves({"a": {"b": ["x y", 1.0]}})
    assert set(leaves({"a": [], "b": {}})) == {("a", "\0[]"), ("b", "\0{}")}
    assert len({*leaves(1), *leaves("1"), *leaves(True), *leaves(None), *leaves("true")}) == 5
    assert leaves(10**400) == leaves(10**400)
    assert leaves([1, 1]) - leaves([1]) == leaves([1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_fitted_temperature_is_the_one_that_scores_were_spoiled_by(temperature: float) -> None:
    """The fitted temperature is the factor by which the log-odds were multiplied, and divided by it the
    scores are calibrated."""
    dice, judged = random.Random(7), list[Judged]()
    for _ in range(4000):
        odds = dice.gauss(0.5, 1.5)
        right = dice.random() < 1 / (1 + math.exp(-odds))
        judged.append(Judged(1 / (1 + math.exp(-odds * temperature)), right))
    fitted = fit_temperature(judged)
    assert fitted is not None
    assert fitted.value == pytest.approx(temperature, rel=0.1)
    assert fitted.after < 0.03
    assert fitted.before == pytest.approx(expected_calibration_error(judged))


def test_no_temperature_without_right_and_wrong_items() -> None:
    """A temperature needs right and wrong items in both halves; scores of 0 and 1 are allowed."""
    assert fit_temperature([Judged(0.9, True)] * 10) is None
    assert fit_temperature([Judged(0.9, True), Judged(0.1, False)] * 5) is None
    sure = [Judged(1.0, True), Judged(0.0, True), Judged(1.0, False), Judged(0.0, False)] * 2
    fitted = fit_temperature(sure)
    assert fitted is not None
    assert fitted.value == pytest.approx(100, rel=0.01)  # each score is as often right as wrong
