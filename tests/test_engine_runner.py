"""Continuous batching changes when values are computed, not which: each answer equals the one given alone."""

from __future__ import annotations

import random
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from alone import alone
from goldens import load_float32
from tiny import make_native

from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.capture.graphs import EagerCapturer
from florence.engine.device.runner import Outcome, Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.errors import EngineError
from florence.model.attention import by_kernel
from florence.model.florence2 import Florence2Model
from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.cpu.openmp import available

SLOTS = 16
ORDERED = range(50, 900)  # ids with window sums: most of those that random weights choose


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    """A tiny model."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


@pytest.fixture(params=["dense", "kernel", "buckets", "delayed"])
def runner(model: Florence2Model, request: pytest.FixtureRequest) -> Runner:
    """A runner for each layout of a step: masked, by the CPU kernel, or in a graph's fixed shapes, whose
    results may arrive one step late."""
    if request.param == "dense":
        return Runner(model, SLOTS, ordered=ORDERED)
    if request.param == "kernel":
        if not available(torch.float32):
            pytest.skip("no kernel for this machine")
        backend = Backend(by_kernel(CpuAttention(torch.float32, 12, 1)))
        return Runner(model, SLOTS, backend=backend, ordered=ORDERED)
    backend = Backend(
        capturer=EagerCapturer(), delayed_readback=request.param == "delayed", free_host_reads=False
    )
    runner = Runner(model, SLOTS, backend=backend, picture_tokens=5, ordered=ORDERED)
    runner.prepare()
    return runner


def random_request(dice: random.Random) -> Request:
    """A request with a random picture, prompt, number of beams, length and options."""
    least = dice.choice([0, 0, 7])
    options = GenerationOptions(
        num_beams=dice.randint(1, 5),
        max_new_tokens=dice.randint(max(1, least), 24),
        min_new_tokens=least,
        no_repeat_ngram_size=dice.choice([0, 1, 2, 3, 4]),
        early_stopping=dice.choice([True, False, "never"]),
        length_penalty=dice.choice([0.0, 1.0, 2.0, -1.0]),
    )
    pixels = np.random.default_rng(dice.randint(0, 5)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    prompt = (0, *(dice.randint(3, 1000) for _ in range(dice.randint(1, 30))), 2)
    return Request(pixels, prompt, options)


def check_slots(runner: Runner, active: Sequence[SequenceState]) -> None:
    """Check that only these sequences hold slots."""
    runner.slots.check([sequence.slot for sequence in active], runner.sizes.slots, runner.sizes.rows)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
@torch.inference_mode()
def test_each_answer_is_the_one_given_alone_whatever_else_is_decoded(runner: Runner, seed: int) -> None:
    """With random arrivals, encode batches, cancellations and lengths, each answer's ids, log-probabilities
    and window sums equal those of the plain path."""
    dice = random.Random(seed)
    coming = [random_request(dice) for _ in range(24)]
    active: list[SequenceState] = []
    finished: list[tuple[SequenceState, Hypothesis]] = []
    while coming or active:
        fitting = runner.slots.fits(request.options.num_beams for request in coming)
        if fitting and (not active or dice.random() < 0.4):
            count = min(fitting, dice.randint(1, 4))
            active += runner.encode(coming[:count])
            coming = coming[count:]
            dice.shuffle(active)
        if active and dice.random() < 0.1:
            runner.drop(active.pop(dice.randrange(len(active))))  # cancelled
            continue
        for sequence, outcome in runner.step(active) if active else ():
            assert isinstance(outcome, Hypothesis)
            finished.append((sequence, outcome))
            active.remove(sequence)
        check_slots(runner, active)
    assert len(finished) > 12
    assert 0 < runner.features.misses <= 6  # there are only six pictures
    for sequence, hypothesis in finished:
        expected = alone(runner.model, sequence.request, runner.rules)
        assert hypothesis.token_ids == expected.token_ids, sequence.request.options
        assert hypothesis.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-3)
        assert np.array(hypothesis.token_windows) == pytest.approx(np.array(expected.token_windows), abs=1e-4)
        assert hypothesis.score == pytest.approx(expected.score, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_requests_one_after_another_in_the_same_slot(runner: Runner) -> None:
    """A request in a used slot gets its own answer, whether prompts and beams grow or shrink.

    Each token of a search with one beam is reported, EOS included.
    """
    dice = random.Random(9)
    for number in range(16):
        told: list[int] = []
        request = replace(random_request(dice), on_token=told.append)
        request = replace(request, options=replace(request.options, num_beams=1 + 2 * (number % 3)))
        left = runner.encode([request])
        outcomes: list[Outcome] = []
        while not outcomes:
            outcomes = [outcome for _, outcome in runner.step(left)]
        (outcome,) = outcomes
        assert isinstance(outcome, Hypothesis)
        assert outcome.token_ids == alone(runner.model, request, runner.rules).token_ids
        if request.options.num_beams == 1:
            assert told == outcome.token_ids[1:]


@torch.inference_mode()
def test_nan_fails_its_request_alone(runner: Runner) -> None:
    """NaN fails only its own request and does not reach the next one in its slot."""
    dice = random.Random(2)
    requests = [random_request(dice) for _ in range(3)]
    left = runner.encode(requests)
    broken = left[1]
    runner.caches.cross_values[:, broken.slot.index] = torch.nan
    outcomes = {}
    while left:
        for sequence, outcome in runner.step(left):
            outcomes[sequence] = outcome
            left = [other for other in left if other is not sequence]
    for sequence, outcome in outcomes.items():
        if sequence is broken:
            assert isinstance(outcome, EngineError)
            continue
        assert isinstance(outcome, Hypothesis)
        assert outcome.token_ids == alone(runner.model, sequence.request, runner.rules).token_ids
    check_slots(runner, [])
    again = runner.encode([request for request in requests for _ in range(3)])
    while again:
        for sequence, outcome in runner.step(again):
            again = [other for other in again if other is not sequence]
            assert isinstance(outcome, Hypothesis)
            expected = alone(runner.model, sequence.request, runner.rules)
            assert outcome.token_ids == expected.token_ids


def hypotheses(runner: Runner, left: list[SequenceState]) -> dict[SequenceState, Outcome]:
    """The outcomes of these requests."""
    outcomes: dict[SequenceState, Outcome] = {}
    while left:
        outcomes |= dict(runner.step(left))
        left = [sequence for sequence in left if sequence not in outcomes]
    return outcomes


def long_request(seed: int, prompt: int = 28) -> Request:
    """A request that takes twenty steps."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = GenerationOptions(3, 20, 20, 3, True, 1.0)
    return Request(pixels, (0, *range(10 + seed, 10 + seed + prompt), 2), options)


def check_alone(runner: Runner, sequences: list[SequenceState]) -> None:
    """Check that the sequences get the answers that they get alone."""
    for sequence, outcome in hypotheses(runner, sequences).items():
        assert isinstance(outcome, Hypothesis)
        assert outcome.token_ids == alone(runner.model, sequence.request, runner.rules).token_ids


@torch.inference_mode()
def test_nan_is_never_written_to_free_rows(runner: Runner) -> None:
    """Free rows between used ones are padding of a step, and the next request in them gets its own answer."""
    left = runner.encode([long_request(seed) for seed in range(4)])
    for _ in range(4):
        runner.step(left)
    runner.drop(left.pop(1))  # its rows become padding
    runner.caches.cross_values[:, left[0].slot.index] = torch.nan
    outcomes = list(hypotheses(runner, left).values())
    assert [isinstance(outcome, EngineError) for outcome in outcomes].count(True) == 1
    check_alone(runner, runner.encode([long_request(10 + seed) for seed in range(6)]))


@pytest.mark.parametrize("steps", [0, 5])
@torch.inference_mode()
def test_a_request_that_is_dropped_before_its_fault_is_known_leaves_no_nan(
    runner: Runner, steps: int
) -> None:
    """A request dropped before its fault is known leaves no NaN to others.

    Its encoder states are NaN from the start, or from its last step on, whose outcome is delayed.
    """
    if steps and not runner.backend.delayed_readback:
        pytest.skip("only with a delayed readback")
    (neighbour,) = runner.encode([long_request(3)])
    (gone,) = runner.encode([long_request(0)])
    for _ in range(steps):
        runner.step([neighbour, gone])
    runner.caches.cross_values[:, gone.slot.index] = torch.nan
    if steps:
        runner.step([neighbour, gone])
    runner.drop(gone)
    check_alone(runner, [neighbour, *runner.encode([long_request(1, prompt=3)])])


def resident_bytes(pages: torch.Tensor) -> int:
    """The bytes of a tensor that the system has allocated, from its report about each page."""
    size = resource.getpagesize()
    first, last = pages.data_ptr() // size + 1, (pages.data_ptr() + pages.nbytes) // size
    # 64 bits for each page; the two highest: it is in memory, it is swapped out
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(8 * first)
        entries = np.frombuffer(pagemap.read(8 * (last - first)), np.uint64)
    return size * np.count_nonzero(entries >> np.uint64(62))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="needs Linux' pagemap")
@pytest.mark.parametrize("reserved", [True, False])
def test_reserved_caches_are_there_before_the_first_request(model: Florence2Model, reserved: bool) -> None:
    """Reserved caches are allocated before the first request, also after a reset; otherwise pages are
    allocated on first write."""
    runner = Runner(model, SLOTS, reserved=reserved)
    runner.prepare()
    for _ in range(2):
        caches = runner.caches
        there = sum(map(resident_bytes, caches.buffers))
        if reserved:
            assert there > 0.99 * (caches.nbytes - 8 * resource.getpagesize())
        assert sum(int(buffer.count_nonzero()) for buffer in caches.buffers) == 0
        runner.reset()
