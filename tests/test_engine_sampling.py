"""Sampling and the repetition penalty: transformers' scores, and draws that depend on the request alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from florence.engine.device.beams.reference import Advance, TokenRules, apply_rules, generate, warp_scores
from florence.engine.device.beams.sampling import gumbel, penalize, philox, warp
from florence.engine.device.beams.search_state import StepShape
from florence.engine.device.steps import shape_of
from florence.engine.request import GenerationOptions
from florence.engine.sequence import StepSequence
from florence.engine.slots import Slot

VOCAB = 101
WORDS = 0xFFFFFFFF
FREE = TokenRules(start_id=2, eos_id=2, forced_bos_id=None, forced_eos_id=None)


def options(**changes: object) -> GenerationOptions:
    """Options of sampling with seed 0, with these changes."""
    values: dict[str, object] = {"num_beams": 1, "do_sample": True, "seed": 0}
    return GenerationOptions(
        **{"max_new_tokens": 20, "min_new_tokens": 0, "no_repeat_ngram_size": 0}
        | {"early_stopping": True, "length_penalty": 1.0}
        | values
        | changes  # type: ignore[arg-type]
    )


def random_scores(seed: int, rows: int = 1, *, rounded: bool = False) -> Tensor:
    """Random scores like a model's; some are -inf, and some equal if `rounded`."""
    scores = 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    scores[scores > 6] = -torch.inf
    return scores.round() if rounded else scores


WARPS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 20),
        "top_k": st.integers(0, VOCAB + 5),
        "top_p": st.floats(0, 1),
    }
)


@given(seed=st.integers(0, 10**6), rounded=st.booleans(), chosen=WARPS)
def test_warped_scores_are_those_of_transformers(seed: int, rounded: bool, chosen: dict[str, float]) -> None:
    """Warped scores equal transformers' bit for bit, on the plain path and in a batch with other settings.

    Of two equal scores the later token's stays here, on both paths; transformers leaves this to chance.
    """
    scores, wished = random_scores(seed, rounded=rounded), options(**chosen)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(wished.temperature)])
    if wished.top_k:
        warpers.append(TopKLogitsWarper(wished.top_k))
    if wished.top_p < 1:
        warpers.append(TopPLogitsWarper(wished.top_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.int64), scores.clone())
    plain = warp_scores(scores[0], wished)
    assert torch.equal(plain.sort().values, expected[0].sort().values)
    assert rounded or torch.equal(plain, expected[0])
    together = warp(
        torch.cat([random_scores(seed + 1), scores]),
        torch.tensor([0.7, wished.temperature]),
        torch.tensor([9, wished.top_k]),
        torch.tensor([0.5, 1 - wished.top_p]),
    )
    assert torch.equal(together[1], plain)


@given(
    seed=st.integers(0, 10**6),
    sequence=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9),
    penalty=st.floats(0.1, 10),
    beams=st.booleans(),
)
def test_a_penalty_changes_scores_as_in_transformers(
    seed: int, sequence: list[int], penalty: float, beams: bool
) -> None:
    """The penalty changes the scores of earlier tokens as transformers does, before repeated n-grams are
    banned.

    It applies to raw logits in greedy search and to log-probabilities in beam search.
    """
    logits = random_scores(seed)
    normalizer = logits.logsumexp(-1) * beams
    scores = logits.log_softmax(-1) if beams else logits
    ids = torch.tensor([sequence])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
    fast = logits.clone()
    penalize(fast, ids, torch.tensor([penalty]), normalizer)
    torch.testing.assert_close(fast - normalizer, expected, rtol=1e-5, atol=1e-5)
    if not beams:
        assert torch.equal(fast, expected)
    wished = options(repetition_penalty=penalty, no_repeat_ngram_size=2)
    expected = NoRepeatNGramLogitsProcessor(2)(ids, expected)
    assert torch.equal(apply_rules(scores, [sequence], wished, FREE), expected)


@given(seed=st.integers(0, 10**6), sequence=st.lists(st.integers(0, VOCAB - 1), min_size=1))
def test_a_penalty_beside_it_changes_nothing_for_a_request_without_one(
    seed: int, sequence: list[int]
) -> None:
    """A request without a penalty keeps its logits bit for bit beside one with a penalty."""
    logits = random_scores(seed)
    fast = logits.clone()
    penalize(fast, torch.tensor([sequence]), torch.ones(1), logits.logsumexp(-1))
    assert torch.equal(fast, logits)


def test_philox_gives_the_words_that_its_authors_publish() -> None:
    """Philox gives the known answers of Random123 for Philox4x32-10."""
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    known = {
        (0,) * 6: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (WORDS,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        pi: (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    }
    a, b, c, d, low, high = (torch.tensor(column) for column in zip(*known, strict=True))
    made = philox((a, b, c, d), (low, high))
    assert [tuple(row) for row in torch.stack(made, dim=-1).tolist()] == list(known.values())


@settings(max_examples=20)
@given(seed=st.integers(0, 2**53 - 1), position=st.integers(0, 4096), others=st.lists(st.integers(0, 99)))
def test_noise_belongs_to_seed_position_and_token(seed: int, position: int, others: list[int]) -> None:
    """The noise depends on seed, position and token alone, not on other requests or the vocabulary's size."""
    seeds = torch.tensor([*others, seed, *others])
    positions = torch.full_like(seeds, position)
    alone = gumbel(torch.tensor([seed]), torch.tensor([position]), VOCAB)[0]
    assert torch.equal(gumbel(seeds, positions, VOCAB)[len(others)], alone)
    assert torch.equal(gumbel(seeds, positions, VOCAB + 3)[len(others), :VOCAB], alone)
    for other in ((seed ^ 1, position), (seed, position + 1), (seed ^ 2**40, position)):
        noise = gumbel(*torch.tensor(other)[:, None], VOCAB)[0]
        # Words of 32 bits: one of 101 is equal by chance once in 2**25 examples, two once in 2**51.
        assert noise.eq(alone).sum() <= 1


def test_draws_have_the_probabilities_of_the_scores() -> None:
    """Over 200,000 positions, and over as many seeds, the chi-squared statistic of 9 degrees of freedom is
    below its 99.99% point."""
    scores = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -2.0, 0.5, 1.5, -0.5, -3.0], dtype=torch.float64)
    count = 200_000
    expected = count * scores.softmax(-1)
    numbers, same = torch.arange(count), torch.full((count,), 7)
    for seeds, positions in ((same, numbers), (numbers, same)):
        drawn = (scores + gumbel(seeds, positions, len(scores))).argmax(-1)
        counts = torch.bincount(drawn, minlength=len(scores))
        assert float(((counts - expected) ** 2 / expected).sum()) < 33.7


def test_noise_of_neighbouring_positions_and_tokens_is_independent() -> None:
    """Neighbouring positions, tokens and seeds have no correlation beyond five standard errors."""
    seeds = torch.arange(64).repeat_interleave(64)
    positions = torch.arange(64).repeat(64)
    noise = gumbel(seeds, positions, 64).reshape(64, 64, 64).numpy()
    for axis in range(3):
        pairs = [np.moveaxis(noise, axis, 0)[start : 63 + start].ravel() for start in (0, 1)]
        assert abs(np.corrcoef(pairs)[0, 1]) < 5 / len(pairs[0]) ** 0.5


@pytest.mark.parametrize("flag", ["sampled", "penalized"])
def test_only_steps_with_such_a_request_have_more_to_do(flag: str) -> None:
    """Only a step with a sampled or penalized request gets another shape."""
    plain = StepSequence(slot=Slot(0, (0,)), encoder_length=9, steps=3)
    asking = replace(plain, slot=Slot(1, (1,)), **{flag: True})
    assert shape_of([plain, plain], 20) == StepShape(1, 5, True, 9)
    assert shape_of([plain, asking], 20) == StepShape(1, 5, True, 9, **{flag: True})


def one_table(scores: Tensor) -> Advance:
    """An `advance` that gives these scores at each step."""

    def advance(parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        return scores.expand(len(tokens), -1)

    return advance


def test_a_seed_decides_the_answer_and_top_k_of_one_is_greedy() -> None:
    """The seed determines the answer, and `top_k=1` gives the greedy one."""
    scores = random_scores(3)
    scores[:, FREE.eos_id] = -torch.inf
    answers = [generate(one_table(scores), options(seed=seed), FREE).token_ids for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert all(one != other for one, other in pairwise(answers[1:]))
    least = generate(one_table(scores), options(top_k=1), FREE)
    assert least.token_ids == generate(one_table(scores), options(do_sample=False), FREE).token_ids
    assert least.token_logprobs == pytest.approx([0.0] * 20)  # only one token is left
