"""The measures: known values of overlaps, precision, captions, texts and calibration."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from florence.evaluation.calibration import (
    GROUPS,
    Judged,
    area_under_curve,
    expected_calibration_error,
    reliability,
)
from florence.evaluation.captions import CaptionScores, Words, tokenize, words_here
from florence.evaluation.figures import Figures
from florence.evaluation.overlaps import area_overlap, box_overlap
from florence.evaluation.precision import BoxPrecision, Found
from florence.evaluation.texts import word_accuracy

pytestmark = pytest.mark.usefixtures("evaluators")

SQUARE = (0.0, 0.0, 10.0, 10.0)
APART = (50.0, 50.0, 60.0, 60.0)
FIRST, SECOND, THIRD = (0, ""), (1, ""), (2, "")


def evaluate_boxes(found: list[Found], truth: list[Found]) -> tuple[Figures, list[bool | None]]:
    precision = BoxPrecision(found, truth)
    return precision.figures(np.ones(3, dtype=int)), precision.right


def cider(said: list[str], right: list[str]) -> float:
    pictures, references = range(len(said)), [[text] for text in right]
    scores = CaptionScores(pictures, said, references, scores=["CIDEr"], words=Words.PLAIN)
    return scores.figures(np.ones(len(said), dtype=int))["CIDEr"]


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
    truth = [Found(FIRST, "a", SQUARE), Found(SECOND, "a", SQUARE), Found(THIRD, "a", SQUARE)]
    found = [Found(FIRST, "a", SQUARE, 0.9), Found(SECOND, "a", APART, 0.8), Found(THIRD, "a", SQUARE, 0.7)]
    figures, right = evaluate_boxes(found, truth)
    assert right == [True, False, True]
    assert figures["mAP@50"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert figures["mAP@50:95"] == pytest.approx(figures["mAP@50"])  # they fit wholly or not at all
    shares = [figures[name] for name in ("recall@50", "precision@50", "AR@50:95")]
    assert shares == pytest.approx([2 / 3] * 3)


def test_a_truth_is_found_once() -> None:
    """A second box on a taken truth is wrong, and so is the worse-scored of two, whichever comes first."""
    doubled = [Found(FIRST, "a", SQUARE, 0.8), Found(FIRST, "a", SQUARE, 0.9)]
    figures, right = evaluate_boxes(doubled, [Found(FIRST, "a", SQUARE)])
    assert right == [False, True]
    assert (figures["mAP@50"], figures["precision@50"]) == pytest.approx((1.0, 0.5))


def test_boxes_that_fit_loosely_are_right_at_50_only() -> None:
    """An overlap of 0.62 counts at three of COCO's ten overlaps, and not at 0.75."""
    figures, right = evaluate_boxes([Found(FIRST, "a", (0, 0, 6.2, 10), 1.0)], [Found(FIRST, "a", SQUARE)])
    assert right == [True]
    assert (figures["mAP@50"], figures["mAP@75"]) == pytest.approx((1.0, 0.0))
    assert figures["mAP@50:95"] == pytest.approx(0.3)


def test_mean_average_precision_is_over_the_truths_labels() -> None:
    """One label found and one missed give a half; a label that is not in the truth costs precision alone."""
    truth = [Found(FIRST, "a", SQUARE), Found(FIRST, "b", SQUARE)]
    figures, right = evaluate_boxes([Found(FIRST, "a", SQUARE, 0.9), Found(FIRST, "c", SQUARE, 0.9)], truth)
    assert right == [True, False]
    assert figures["mAP@50"] == pytest.approx(0.5)
    assert figures["recall@50"] == figures["precision@50"] == 0.5


def test_nothing_has_no_figures() -> None:
    """nan without truth, and of nothing at all; truth without boxes is all missed."""
    assert all(math.isnan(value) for value in evaluate_boxes([], [])[0].values())
    assert math.isnan(evaluate_boxes([Found(FIRST, "a", SQUARE, 0.9)], [])[0]["mAP@50"])
    missed = evaluate_boxes([], [Found(FIRST, "a", SQUARE)])[0]
    assert (missed["mAP@50:95"], missed["recall@50"]) == (0.0, 0.0)


def test_words_count_once() -> None:
    """A word read twice is right once."""
    assert word_accuracy("OPEN OPEN", "OPEN EXIT") == (1, 2)
    assert word_accuracy("", "OPEN") == (0, 1)


def test_cider_of_known_captions() -> None:
    """Right captions of four words or more come to 10, wrong and empty ones to 0; one alone has none.
    Capitals and full stops count for nothing."""
    right = ["a small red star", "the large blue ring"]
    assert cider(right, right) == pytest.approx(10)
    assert cider(["A small red star.", "the LARGE blue ring"], right) == pytest.approx(10)
    assert cider(["no", ""], right) == 0.0
    assert 2 < cider(["a small red moon", "the large blue ring"], right) < 10
    assert math.isnan(cider(right[:1], right[:1]))


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
