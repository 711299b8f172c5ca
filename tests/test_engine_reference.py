"""The plain beam search: its rules against transformers', and its bookkeeping with tables of chosen
scores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
)

from florence.engine.device.beams.reference import (
    Advance,
    FinishedHypotheses,
    TokenRules,
    apply_rules,
    generate,
    repeated_tokens,
)
from florence.engine.request import GenerationOptions
from florence.errors import EngineError

RULES = TokenRules(start_id=2, eos_id=2, forced_bos_id=0, forced_eos_id=2)
FREE = TokenRules(start_id=2, eos_id=2, forced_bos_id=None, forced_eos_id=None)
VOCAB = 6


def options(**changes: object) -> GenerationOptions:
    """Options of a search with two beams, with these changes."""
    values: dict[str, object] = {
        "num_beams": 2,
        "max_new_tokens": 8,
        "min_new_tokens": 0,
        "no_repeat_ngram_size": 0,
        "early_stopping": True,
        "length_penalty": 1.0,
    }
    return GenerationOptions(**(values | changes))  # type: ignore[arg-type]


@given(
    sequence=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9),
    size=st.integers(1, 4),
    min_new_tokens=st.integers(0, 4),
)
def test_rules_are_those_of_transformers_in_the_originals_order(
    sequence: list[int], size: int, min_new_tokens: int
) -> None:
    """The token rules give the scores of transformers' processors in the original's order."""
    sequence[0] = RULES.start_id
    chosen = options(no_repeat_ngram_size=size, min_new_tokens=min_new_tokens, max_new_tokens=8)
    processors = LogitsProcessorList(
        [
            NoRepeatNGramLogitsProcessor(size),
            MinNewTokensLengthLogitsProcessor(1, min_new_tokens, RULES.eos_id, device="cpu"),
            ForcedBOSTokenLogitsProcessor(0),
            ForcedEOSTokenLogitsProcessor(chosen.max_length, 2, device="cpu"),
        ]
    )
    scores = torch.arange(VOCAB, dtype=torch.float32)[None]
    expected = processors(torch.tensor([sequence]), scores.clone())
    assert torch.equal(apply_rules(scores, [sequence], chosen, RULES), expected)


@given(sequence=st.lists(st.integers(0, 3), max_size=12), size=st.integers(1, 4))
def test_a_banned_token_and_only_it_would_repeat_an_ngram(sequence: list[int], size: int) -> None:
    """The banned tokens are exactly those that would repeat an n-gram."""
    seen = {tuple(sequence[start : start + size]) for start in range(len(sequence) - size + 1)}
    tail = tuple(sequence[len(sequence) - size + 1 :]) if size > 1 else ()
    if len(tail) < size - 1:
        tail = (-1,) * size  # shorter than any n-gram
    expected = {token for token in range(4) if (*tail, token) in seen}
    assert set(repeated_tokens(sequence, size)) == expected


def table(rows: dict[tuple[int, ...], dict[int, float]]) -> Advance:
    """An `advance` with the probabilities in `rows` for each beam's tokens; other tokens are very
    unlikely."""
    beams: list[list[int]] = []

    def advance(parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        nonlocal beams
        before = beams or [[]] * len(parents)
        beams = [[*before[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        probabilities = torch.full((len(beams), VOCAB), 1e-6)
        for row, beam in enumerate(beams):
            for token, probability in rows.get(tuple(beam), {5: 1.0}).items():
                probabilities[row, token] = probability
        return probabilities.log()

    return advance


def test_two_beams_find_a_sequence_that_greedy_search_misses() -> None:
    """Two beams find the best sequence, which starts with the less likely token."""
    by_total = {"early_stopping": False, "length_penalty": 0.0}
    rows = {(2,): {3: 0.6, 4: 0.4}, (2, 3): {2: 0.5, 5: 0.5}, (2, 4): {2: 1.0}}
    advance = table(rows)
    assert generate(advance, options(num_beams=2, **by_total), FREE).token_ids == [2, 4, 2]
    advance = table(rows)
    assert generate(advance, options(num_beams=1), FREE).token_ids[:2] == [2, 3]


def test_an_eos_that_ranks_after_the_open_beams_is_dropped() -> None:
    """Only the first `num_beams` candidates may end, as in transformers."""
    rows = {(2,): {3: 0.5, 4: 0.3, 2: 0.2}, (2, 3): {2: 1.0}, (2, 4): {2: 1.0}}
    advance = table(rows)
    hypothesis = generate(advance, options(num_beams=2), FREE)
    assert hypothesis.token_ids == [2, 3, 2]


def test_log_probabilities_are_one_a_token_and_sum_to_the_score() -> None:
    """Each token has one log-probability, and their sum with the length penalty is the score."""
    rows = {(2,): {3: 0.9, 4: 0.1}, (2, 3): {4: 0.8, 2: 0.2}, (2, 3, 4): {2: 1.0}}
    advance = table(rows)
    hypothesis = generate(advance, options(num_beams=3, length_penalty=2.0), FREE)
    assert len(hypothesis.token_logprobs) == len(hypothesis.token_ids) - 1
    total = sum(hypothesis.token_logprobs)
    assert hypothesis.score == pytest.approx(total / len(hypothesis.token_logprobs) ** 2.0, rel=1e-5)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_forced_tokens_stand_first_and_last(num_beams: int, most: int) -> None:
    """`<s>` is forced first and `</s>` last, and `</s>` alone if there is room for one token, as in the
    original."""
    advance = table({})
    chosen = options(num_beams=num_beams, max_new_tokens=most)
    token_ids = generate(advance, chosen, RULES).token_ids
    assert len(token_ids) == 1 + most
    assert token_ids[0] == 2
    assert token_ids[-1] == 2
    assert most == 1 or token_ids[1] == 0


@pytest.mark.parametrize("num_beams", [1, 3])
def test_logits_that_are_not_numbers_fail_the_request(num_beams: int) -> None:
    """NaN logits fail the request."""

    def advance(parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        return torch.full((len(parents), VOCAB), torch.nan)

    with pytest.raises(EngineError, match="NaN or infinite"):
        generate(advance, options(num_beams=num_beams), RULES)


def test_of_equal_scores_the_newest_is_best_and_the_oldest_is_replaced() -> None:
    """The newest of equal scores is best and the oldest is replaced, as in transformers' `BeamHypotheses`."""
    finished = FinishedHypotheses(options(num_beams=2))
    for token, total in ((3, -2.0), (4, -2.0), (5, -1.0)):
        finished.add([2, token], [total], [], total)
    assert [hypothesis.token_ids[1] for hypothesis in finished.kept] == [4, 5]
    finished.add([2, 6], [-1.0], [], -1.0)
    assert finished.best().token_ids == [2, 6]
