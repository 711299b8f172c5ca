"""Scores of typed results: from each item's own tokens, by exact alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from florence.answers import Piece, parse_answer
from florence.errors import RequestError
from florence.types.results import Detection, Detections, Text

SIZE = (1000, 1000)


def pieces_of(texts: Sequence[str]) -> list[Piece]:
    """Pieces of one token each, but for plain text, which is given two."""
    pieces, start = [], 0
    for text in texts:
        stop = start + (1 if text.startswith("<") else 2)
        pieces.append(Piece(text, start, stop))
        start = stop
    return pieces


def score_all(task: str, texts: Sequence[str], logprobs: Sequence[float]) -> Any:
    """The result of pieces with one log-probability for each of their tokens."""
    return parse_answer(
        task, "".join(texts), image_size=SIZE, pieces=pieces_of(texts), token_logprobs=logprobs
    ).result


def test_scores_of_boxes_are_those_of_their_own_tokens() -> None:
    """A stray location shifts nothing: each score is exp of the mean of its own four log-probabilities."""
    four = ["<loc_1>", "<loc_2>", "<loc_3>", "<loc_4>"]
    texts = ["</s>", "<s>", "cup", "<loc_9>", "car", *four, *four, "</s>"]
    logprobs = [0, 0, -9, -9, -9, -9, -9, -0.1, -0.2, -0.3, -0.4, -1, -1, -1, -3, -9]
    result = score_all("<OD>", texts, logprobs)
    assert [found.score for found in result.detections] == pytest.approx([math.exp(-0.25), math.exp(-1.5)])


def test_scores_of_quads_polygons_and_texts() -> None:
    """Every kind of item has a score: of eight locations, of a thing's polygons, of a text's tokens."""
    eight = [f"<loc_{bin_}>" for bin_ in range(8)]
    quads = score_all("<OCR_WITH_REGION>", ["a", *eight], [-9, -9, *[-0.5] * 8])
    assert quads.regions[0].score == pytest.approx(math.exp(-0.5))
    things = score_all("<REGION_TO_SEGMENTATION>", ["<poly>", *eight[:6], "<sep>", *eight, "</poly>"], [
        -9, *[-1.0] * 6, -9, *[-2.0] * 8, -9,
    ])  # fmt: skip
    assert things.instances[0].score == pytest.approx(math.exp(-22 / 14))
    text = score_all("<CAPTION>", ["</s>", "<s>", "a car", "</s>"], [-9, -9, -0.2, -0.4, -9])
    assert text.score == pytest.approx(math.exp(-0.3))


def test_what_is_not_known_has_no_score() -> None:
    """No log-probabilities, or locations spelt out in plain text: no score, rather than a wrong one."""
    four = "<loc_1><loc_2><loc_3><loc_4>"
    unscored = Detections(detections=[Detection(label="car", box=(1.5, 2.5, 3.5, 4.5), score=None)])
    assert parse_answer("<OD>", "car" + four, image_size=SIZE).result == unscored
    pieces = [Piece("car" + four, 0, 9)]
    spelt = parse_answer("<OD>", "car" + four, image_size=SIZE, pieces=pieces, token_logprobs=[-1.0] * 9)
    assert spelt.result == unscored
    assert score_all("<CAPTION>", ["</s>", "<s>", "</s>"], [0, 0, 0]) == Text(text="")


@pytest.mark.parametrize(("logprob", "score"), [(-math.inf, 0.0), (1e-6, 1.0), (1e9, 1.0), (math.nan, None)])
def test_scores_stay_between_0_and_1(logprob: float, score: float | None) -> None:
    """Infinite, rounded-up and undefined log-probabilities make a score that the schema takes."""
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
    """Pieces of another text, or without log-probabilities, are refused instead of scored wrongly."""
    with pytest.raises(RequestError, match=message):
        parse_answer("<CAPTION>", "cars", pieces=pieces, token_logprobs=[-1.0, -1.0])
