"""Continuous batching changes when things are computed, never what: every answer is that of
`generate_alone`."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from goldens import load_float32
from tiny import make_native

from florence.engine.reference import generate_alone
from florence.engine.request import GenerationOptions, Request
from florence.engine.runner import Decoding, Runner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    directory = tmp_path_factory.mktemp("tiny")
    return Runner(load_float32(directory, make_native(directory).config.text_config.vocab_size))


def random_request(dice: random.Random) -> Request:
    """Any picture, prompt length, number of beams, length, and settings."""
    least = dice.choice([0, 0, 7])
    options = GenerationOptions(
        num_beams=dice.randint(1, 5),
        max_new_tokens=dice.randint(max(1, least), 24),
        min_new_tokens=least,
        no_repeat_ngram_size=dice.choice([0, 2, 3]),
        early_stopping=dice.choice([True, False]),
        length_penalty=dice.choice([0.0, 1.0, 2.0]),
    )
    pixels = np.random.default_rng(dice.randint(0, 5)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    prompt = (0, *(dice.randint(3, 1000) for _ in range(dice.randint(1, 30))), 2)
    return Request(pixels, prompt, options)


@pytest.mark.parametrize("seed", range(6))
@torch.inference_mode()
def test_whoever_comes_and_goes_each_answer_is_the_one_given_alone(runner: Runner, seed: int) -> None:
    """Random arrivals, encode batches, cancels and lengths; logits and ids against the plain path."""
    dice = random.Random(seed)
    coming = [random_request(dice) for _ in range(24)]
    active: list[Decoding] = []
    finished: list[Decoding] = []
    while coming or active:
        if coming and (not active or dice.random() < 0.4):
            count = dice.randint(1, 4)
            active += runner.encode(coming[:count])
            coming = coming[count:]
            dice.shuffle(active)
        if active and dice.random() < 0.1:
            active.pop(dice.randrange(len(active)))  # cancelled
            continue
        for decoding, logits in zip(active, runner.step(active), strict=True) if active else ():
            decoding.search.take(logits)
        finished += [decoding for decoding in active if decoding.search.done]
        active = [decoding for decoding in active if not decoding.search.done]
    assert len(finished) > 12
    assert runner.features.misses <= 6 < runner.features.hits  # six pictures in all
    for decoding in finished:
        expected = generate_alone(runner.model, decoding.request, runner.rules)
        hypothesis = decoding.search.best()
        assert hypothesis.token_ids == expected.token_ids
        assert hypothesis.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-3)


def test_prompts_of_different_lengths_encode_as_if_alone(runner: Runner) -> None:
    dice = random.Random(1)
    requests = [replace(random_request(dice), prompt_ids=(0, *range(5, 5 + n), 2)) for n in (1, 40, 7, 7)]
    together = runner.encode(requests)
    for request, decoding in zip(requests, together, strict=True):
        (alone,) = runner.encode([request])
        for ours, expected in zip(decoding.state.cross, alone.state.cross, strict=True):
            torch.testing.assert_close(ours.keys, expected.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.values, expected.values, atol=1e-4, rtol=1e-4)
