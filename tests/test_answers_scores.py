"""Scores of typed results, which come from each item's own tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pieces import pieces_of

from florence.answers import Piece, parse_answer
from florence.answers.confidence import BOX, FINE, confidence, thickness
from florence.errors import RequestError
from florence.types.bounds import WINDOWS
from florence.types.results import Detection, Detections, Text

SIZE = (1000, 1000)
STAR = [
    ((1.0 if corner % 2 == 0 else 0.42) * math.sin(corner * math.pi / 5),
     -(1.0 if corner % 2 == 0 else 0.42) * math.cos(corner * math.pi / 5))
    for corner in range(10)
]  # fmt: skip


def score_all(task: str, texts: Sequence[str], logprobs: Sequence[float]) -> Any:
    """The result of pieces, with one log-probability for each of their tokens."""
    return parse_answer(
        task, "".join(texts), image_size=SIZE, pieces=pieces_of(texts), token_logprobs=logprobs
    ).result


def test_original_scores_of_boxes_are_those_of_their_own_tokens() -> None:
    """A box's original score is exp of the mean of its own four log-probabilities, even after a stray
    location."""
    four = ["<loc_1>", "<loc_2>", "<loc_3>", "<loc_4>"]
    texts = ["</s>", "<s>", "cup", "<loc_9>", "car", *four, *four, "</s>"]
    logprobs = [0, 0, -9, -9, -9, -9, -9, -0.1, -0.2, -0.3, -0.4, -1, -1, -1, -3, -9]
    found = score_all("<OD>", texts, logprobs).detections
    assert [each.original_score for each in found] == pytest.approx([math.exp(-0.25), math.exp(-1.5)])


def test_original_scores_of_quads_and_polygons_and_scores_of_texts() -> None:
    """A quad is scored by its eight locations, an instance by those of its polygons, and a text by its
    tokens."""
    eight = [f"<loc_{bin_}>" for bin_ in range(8)]
    quads = score_all("<OCR_WITH_REGION>", ["a", *eight], [-9, -9, *[-0.5] * 8])
    assert quads.regions[0].original_score == pytest.approx(math.exp(-0.5))
    things = score_all("<REGION_TO_SEGMENTATION>", ["<poly>", *eight[:6], "<sep>", *eight, "</poly>"], [
        -9, *[-1.0] * 6, -9, *[-2.0] * 8, -9,
    ])  # fmt: skip
    assert things.instances[0].original_score == pytest.approx(math.exp(-22 / 14))
    text = score_all("<CAPTION>", ["</s>", "<s>", "a car", "</s>"], [-9, -9, -0.2, -0.4, -9])
    assert text.score == pytest.approx(math.exp(-0.3))


def score_windows(
    task: str, texts: Sequence[str], mass: Callable[[int], float], label: float = 0.0, **options: float
) -> Any:
    """The result where each location has these sums, and each other token the log-probability `label`."""
    pieces = pieces_of(texts)
    of_tokens = [text.startswith("<loc") for text, piece in zip(texts, pieces, strict=True)
                 for _ in range(piece.start, piece.stop)]  # fmt: skip
    return parse_answer(
        task,
        "".join(texts),
        image_size=SIZE,
        pieces=pieces,
        token_logprobs=[-3.0 if location else label for location in of_tokens],
        token_windows=[tuple(map(mass, WINDOWS)) if location else () for location in of_tokens],
        **options,
    ).result


def box_texts(side: int) -> list[str]:
    """The location tokens of a square box."""
    return [f"<loc_{bin_}>" for bin_ in (100, 100, 100 + side, 100 + side)]


def test_a_box_is_scored_by_the_probability_near_its_corners() -> None:
    """The label's two tokens count in full; a probability mass 50 locations away counts for a large box but
    not for a small one."""

    def far(width: int) -> float:
        return 1.0 if width >= 50 else 0.25

    small, large = (
        score_windows("<OD>", ["car", *box_texts(side)], far, label=math.log(0.9)).detections[0].score
        for side in (50, 800)
    )
    close = 0.25 ** (4 * BOX.power * FINE.power)  # the same for both boxes
    assert small == pytest.approx(0.81 * close * 0.25 ** (4 * BOX.power))
    assert large == pytest.approx(0.81 * close)


def test_a_label_for_several_boxes_counts_for_each() -> None:
    """A second box after one label gets that label's probability; a second quad has no text of its own to
    score."""
    boxes = score_windows("<OD>", ["car", *box_texts(50), *box_texts(60)], lambda _: 1.0, math.log(0.5))
    assert [each.score for each in boxes.detections] == pytest.approx([0.25, 0.25])
    eight = [f"<loc_{bin_}>" for bin_ in (10, 10, 90, 10, 90, 40, 10, 40)]
    quads = score_windows("<OCR_WITH_REGION>", ["EXIT", *eight, *eight], lambda _: 1.0, math.log(0.5))
    assert [each.score for each in quads.regions] == pytest.approx([0.25, 1.0])
    plain = score_windows("<REGION_PROPOSAL>", ["car", *box_texts(50)], lambda _: 1.0, math.log(0.5))
    assert plain.detections[0].score == pytest.approx(1.0)


def test_thin_polygons_get_lower_scores() -> None:
    """With the same probabilities, a star has a lower score than a box, and a line the lowest."""
    star = [bin_ for x, y in STAR for bin_ in (round(500 + 200 * x), round(500 + 200 * y))]
    square = [300, 300, 700, 300, 700, 700, 300, 700]
    line = [300, 300, 700, 700, 300, 300]
    scores = [
        score_windows(
            "<REGION_TO_SEGMENTATION>", [f"<loc_{bin_}>" for bin_ in bins], lambda width: width / 128
        )
        .instances[0]
        .score
        for bins in (square, star, line)
    ]
    assert scores == sorted(scores, reverse=True)
    assert thickness(square) == 1
    assert 0.3 < thickness(star) < 0.7
    assert thickness(line) == 0


@given(masses=st.lists(st.floats(0, 1), min_size=1), temperature=st.floats(0.1, 10), label=st.floats(-50, 0))
def test_a_temperature_moves_scores_towards_or_from_one_half(
    masses: list[float], temperature: float, label: float
) -> None:
    """A temperature divides the log-odds of a score, which keeps order and range."""
    plain, tempered = (confidence(masses, 0.5, [label], each) for each in (1.0, temperature))
    assert 0 <= tempered <= 1
    if 1e-9 < plain < 1 - 1e-9:
        odds = math.log(plain / (1 - plain)) / temperature
        assert tempered == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-6)


def test_boxes_leave_sorted() -> None:
    """The corners of a box are sorted, whatever order the model writes them in."""
    texts = ["car", "<loc_700>", "<loc_90>", "<loc_100>", "<loc_30>"]
    assert score_windows("<OD>", texts, lambda _: 1.0).detections[0].box == (100.5, 30.5, 700.5, 90.5)


def test_windows_are_one_a_token() -> None:
    """Window sums that do not match the number of tokens are refused."""
    pieces = pieces_of(["car", *box_texts(9)])
    with pytest.raises(RequestError, match="one row for each log-probability, 6, got 2"):
        parse_answer("<OD>", "car" + "".join(box_texts(9)), image_size=SIZE, pieces=pieces,
                     token_logprobs=[0.0] * 6, token_windows=[(), ()])  # fmt: skip


def test_what_is_not_known_has_no_score() -> None:
    """An item has no score without log-probabilities, or if its locations are plain text."""
    four = "<loc_1><loc_2><loc_3><loc_4>"
    unscored = Detections(detections=[Detection(label="car", box=(1.5, 2.5, 3.5, 4.5), score=None)])
    assert parse_answer("<OD>", "car" + four, image_size=SIZE).result == unscored
    pieces = [Piece("car" + four, 0, 9)]
    spelt = parse_answer("<OD>", "car" + four, image_size=SIZE, pieces=pieces, token_logprobs=[-1.0] * 9)
    assert spelt.result == unscored
    assert score_all("<CAPTION>", ["</s>", "<s>", "</s>"], [0, 0, 0]) == Text(text="")


@pytest.mark.parametrize(("logprob", "score"), [(-math.inf, 0.0), (1e-6, 1.0), (1e9, 1.0), (math.nan, None)])
def test_scores_stay_between_0_and_1(logprob: float, score: float | None) -> None:
    """Infinite, rounded-up and undefined log-probabilities give a score that the schema accepts."""
    assert score_all("<CAPTION>", ["a"], [logprob, logprob]) == Text(text="a", score=score)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([Piece("car", 0, 2)], "joined must be the generated text"),
        ([Piece("cars", 0, 3)], "lies outside the 2 log-probabilities"),
        ([Piece("cars", -1, 1)], "lies outside"),
        ([Piece("cars", 2, 1)], "lies outside"),
    ],
)
def test_pieces_must_fit_the_text(pieces: list[Piece], message: str) -> None:
    """Pieces of another text, or without log-probabilities, are refused."""
    with pytest.raises(RequestError, match=message):
        parse_answer("<CAPTION>", "cars", pieces=pieces, token_logprobs=[-1.0, -1.0])
