"""Figures agree with their libraries, and pictures may count more than once."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import program

from florence.evaluation.comparing import compare
from florence.evaluation.files.examples import Answered, Example, Truth
from florence.evaluation.measures.captions import ALL_SCORES, CaptionScores, Words, tokenize, words_here
from florence.evaluation.measures.figures import Evaluation, Figures, Metric, Share, mean_of
from florence.evaluation.measures.precision import AveragePrecision, PlacedThing
from florence.evaluation.measures.writing import measure_exact
from florence.types.results import Text

pytestmark = pytest.mark.usefixtures("evaluators")

WORDS = ["a", "red", "star", "on", "the", "blue", "field", "and", "two", "small", "rings", "near", "it"]
PLAIN_SCORES = [name for name in ALL_SCORES if name != "METEOR"]
ONCE = np.ones(6, dtype=int)
NUMBERED = list(range(6))


def sentence(dice: random.Random) -> str:
    """A random sentence of up to nine words."""
    return " ".join(dice.choices(WORDS, k=dice.randint(1, 9)))


def captions(seed: int) -> tuple[list[str], list[list[str]]]:
    """Random captions of six pictures, with one to five references each."""
    dice = random.Random(seed)
    right = [[sentence(dice) for _ in range(dice.randint(1, 5))] for _ in NUMBERED]
    said = [dice.choice([sentence(dice), texts[0]]) for texts in right]
    return said, right


def by_library(name: str, said: Sequence[str], right: Sequence[Sequence[str]]) -> Any:
    """pycocoevalcap's own score of all captions, called as COCO's evaluation does."""
    module = importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}")
    references = {number: list(texts) for number, texts in enumerate(right)}
    return getattr(module, name)().compute_score(references, {n: [text] for n, text in enumerate(said)})[0]


@pytest.mark.parametrize("seed", range(4))
def test_captions_have_the_librarys_scores(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores of random captions equal pycocoevalcap's."""
    said, right = captions(seed)
    figures = CaptionScores(NUMBERED, said, right, scores=PLAIN_SCORES, words=Words.PLAIN).figures(ONCE)
    for number, value in enumerate(by_library("Bleu", said, right), start=1):
        assert figures[f"BLEU-{number}"] == pytest.approx(value)
    assert figures["ROUGE-L"] == pytest.approx(by_library("Rouge", said, right))
    assert figures["CIDEr"] == pytest.approx(by_library("Cider", said, right))


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_java_makes_words_and_meteor() -> None:
    """METEOR equals the library's and is 1 for correct captions, and the Penn Treebank tokenizer gives one
    text for each caption, whatever line breaks it has.

    The library leaves its pipes open.
    """
    program("java", "default-jre-headless", "JAVA_PROGRAM")
    said, right = captions(1)
    scores = CaptionScores(NUMBERED, said, right, scores=["METEOR"])
    assert scores.figures(ONCE)["METEOR"] == pytest.approx(by_library("Meteor", said, right))
    perfect = CaptionScores(NUMBERED, [texts[0] for texts in right], right, scores=["METEOR"])
    assert perfect.figures(ONCE) == {"METEOR": pytest.approx(1.0)}
    assert 0 < scores.figures(np.array([3, 0, 1, 0, 2, 0]))["METEOR"] <= 1
    assert CaptionScores([0, 1], ["", "..."], [["a star"], ["a ring"]]).figures(ONCE[:2])["METEOR"] == 0.0
    assert words_here() is Words.PTB
    assert tokenize(["A star.\u2028And\r\na ring", "", "the dog's"], Words.PTB) == [
        "a star and a ring", "", "the dog 's",
    ]  # fmt: skip


def boxes(seed: int) -> tuple[list[PlacedThing], list[PlacedThing]]:
    """Found and true boxes in six pictures, close to each other, with three labels."""
    dice, found, truth = random.Random(seed), list[PlacedThing](), list[PlacedThing]()
    for number in NUMBERED:
        for _ in range(dice.randint(0, 4)):
            x, y, label = dice.uniform(0, 50), dice.uniform(0, 50), dice.choice("abc")
            truth.append(PlacedThing((number, ""), label, (x, y, x + 20, y + 20), crowd=dice.random() < 0.1))
            shift = dice.uniform(-8, 8)
            found.append(
                PlacedThing(
                    (number, ""), dice.choice([label, "a"]), (x, y, x + 20 + shift, y + 20), dice.random()
                )
            )
    return found, truth


def copied(rows: Sequence[PlacedThing], repeats: Sequence[int]) -> list[PlacedThing]:
    """Each box as often as its picture counts, each time in a new picture."""
    return [
        PlacedThing((row.picture[0], str(copy)), row.label, row.box, row.score, row.crowd)
        for row in rows
        for copy in range(repeats[row.picture[0]])
    ]


def same(one: Figures, two: Figures) -> bool:
    """True if both have the same figures."""
    return {name: pytest.approx(value, nan_ok=True) for name, value in two.items()} == one


@pytest.mark.parametrize("seed", range(6))
def test_a_picture_that_counts_twice_is_two_pictures(seed: int) -> None:
    """Figures with repeats equal those of data in which the pictures are repeated, except CIDEr's word
    weights."""
    dice = random.Random(seed)
    repeats = np.random.default_rng(seed).multinomial(6, np.full(6, 1 / 6))
    found, truth = boxes(seed)
    slow = AveragePrecision(copied(found, repeats), copied(truth, repeats)).figures(ONCE)
    assert same(AveragePrecision(found, truth).figures(repeats), slow)

    said, right = captions(seed)
    order = [number for number in NUMBERED for _ in range(repeats[number])]
    names = [name for name in PLAIN_SCORES if name != "CIDEr"]
    scores = CaptionScores(NUMBERED, said, right, scores=names, words=Words.PLAIN).figures(repeats)
    drawn = CaptionScores(
        NUMBERED, [said[n] for n in order], [right[n] for n in order], scores=names, words=Words.PLAIN
    )
    assert same(scores, drawn.figures(ONCE))

    pictures, tops = dice.choices(NUMBERED, k=30), [dice.random() for _ in range(30)]
    share = Share("share", pictures, tops, [2.0] * 30).figures(repeats)["share"]
    again = [top / 2 for number, top in zip(pictures, tops, strict=True) for _ in range(repeats[number])]
    assert share == pytest.approx(sum(again) / len(again))


def test_a_box_on_a_crowd_is_neither_right_nor_wrong() -> None:
    """A box on a crowd changes no figure, and a crowd need not be found."""
    place, box, there = (0, ""), (0, 0, 9, 9), (50, 50, 90, 90)
    truth = [PlacedThing(place, "a", box), PlacedThing(place, "a", there, crowd=True)]
    found = [PlacedThing(place, "a", box, 0.9), PlacedThing(place, "a", (60, 60, 70, 70), 0.8)]
    precision = AveragePrecision(found, truth)
    assert precision.right == [True, None]
    figures = precision.figures(np.ones(1, dtype=int))
    assert [figures[name] for name in ("mAP@50", "recall@50", "precision@50")] == pytest.approx([1.0] * 3)


def evaluation(rights: Sequence[bool]) -> Evaluation:
    """An evaluation of one text for each picture, right or wrong."""
    return measure_exact(
        [
            Answered(
                Example(str(n), Path(str(n)), Truth(texts=("yes",))), Text(text="yes" if ok else "no"), (1, 1)
            )
            for n, ok in enumerate(rights)
        ]
    )


def test_an_interval_holds_the_change() -> None:
    """Equal answers have no change, half of the answers is a clear change, and one of sixty is not.

    A mean's interval is that of the normal distribution.
    """
    dice = random.Random(4)
    some = [dice.random() < 0.5 for _ in range(60)]
    (equal,) = compare(evaluation(some), evaluation(some), resamples=50)
    assert (equal.low, equal.high, equal.is_clear) == (0, 0, False)
    (clear,) = compare(evaluation([False] * 60), evaluation(some), resamples=400)
    spread = 1.96 * math.sqrt(clear.b * (1 - clear.b) / 60)
    assert clear.is_clear
    assert (clear.low, clear.high) == pytest.approx((clear.b - spread, clear.b + spread), abs=0.03)
    (unclear,) = compare(evaluation([*some[:-1], False]), evaluation([*some[:-1], True]), resamples=200)
    assert unclear.low == 0 < unclear.b - unclear.a <= unclear.high
    assert not unclear.is_clear


def test_what_can_not_be_measured_has_no_interval() -> None:
    """A share of nothing is nan, with and without resampling."""
    nothing: list[Metric] = [mean_of("nothing", [], [])]
    rows = evaluation([True, False]).rows
    (one,) = compare(Evaluation(rows, nothing, []), Evaluation(rows, nothing, []), resamples=5)
    assert all(math.isnan(value) for value in (one.a, one.b, one.low, one.high))
