"""Encodes write into the places of their requests, and nowhere else, whatever the batch was padded to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import load_float32
from tiny import make_native
from torch import Tensor

from florence.engine.device.encodes import BucketEncodes, PlainEncodes
from florence.engine.device.graphs import Buckets, BucketSteps, PlainRecorder, Recorder, Replay, Work
from florence.engine.device.reference import Hypothesis, generate_alone
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.caches import Caches, CacheSizes
from florence.model.chunks import run_to_end
from florence.model.florence2 import Florence2Model

PICTURE_TOKENS, SLOTS = 5, 8
SIZES = CacheSizes(SLOTS, 3 * SLOTS, encoder_room=60, decoder_room=20)
BUCKETS = Buckets.of(SLOTS, 3 * SLOTS, 3, 8, 21, PICTURE_TOKENS, SIZES.encoder_room, SLOTS)
UNTOUCHED = 7.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


class Watched(PlainRecorder):
    """Says what recorded work returned."""

    def __init__(self) -> None:
        self.results: list[Sequence[Tensor]] = []

    def record(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        recorded = super().record(work)
        self.results.append(recorded[1])
        return recorded


def caches_of(model: Florence2Model) -> Caches:
    text = model.config.text
    caches = Caches(SIZES, text.decoder, text.d_model, torch.device("cpu"), torch.float32)
    caches.cross_keys.fill_(UNTOUCHED)
    caches.cross_values.fill_(UNTOUCHED)
    return caches


def prompts_of(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(range(10 + length, 10 + 2 * length)) for length in lengths]


@torch.inference_mode()
def test_a_recorded_encode_fills_its_slots_as_the_plain_one_and_no_others(model: Florence2Model) -> None:
    """Batches that fill their bucket and others that don't, by turns, so that the rows which pad one have
    been somebody's; each as it warms up, is recorded, and is replayed."""
    dice = np.random.default_rng(0)
    recorder = Watched()
    caches, expected = caches_of(model), caches_of(model)
    recorded, plain = BucketEncodes(model, caches, BUCKETS, recorder), PlainEncodes(model, expected)
    for number, count in enumerate((4, 3, 4, 3, 8, 6, 5, 6, 1, 1, 1)):
        slots = [int(slot) for slot in dice.permutation(SLOTS)[:count]]
        lengths = [int(length) for length in dice.integers(2, 50 if number % 2 else 16, count)]
        pictures = torch.randn(count, PICTURE_TOKENS, model.config.text.d_model)
        for buffer in (*buffers(caches), *buffers(expected)):
            buffer.fill_(UNTOUCHED)
        run_to_end(recorded.cross(pictures, prompts_of(lengths), slots))
        run_to_end(plain.cross(pictures, prompts_of(lengths), slots))
        for mine, other in zip(buffers(caches), buffers(expected), strict=True):
            for slot, length in zip(slots, lengths, strict=True):
                own = PICTURE_TOKENS + length
                torch.testing.assert_close(mine[:, slot, :, :own], other[:, slot, :, :own])
            absent = sorted(set(range(SLOTS)) - set(slots))
            assert (mine[:, absent] == UNTOUCHED).all()
    assert len(recorder.results) >= 3
    assert not any(recorder.results)  # a recording keeps nothing beside the caches


def buffers(caches: Caches) -> tuple[Tensor, Tensor]:
    return caches.cross_keys, caches.cross_values


@torch.inference_mode()
def test_pictures_of_a_padded_batch_are_those_of_the_plain_one(model: Florence2Model) -> None:
    recorded = BucketEncodes(model, caches_of(model), BUCKETS, PlainRecorder())
    for count in (4, 3, 4, 3):
        pixels = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
        torch.testing.assert_close(run_to_end(recorded.look(pixels)), model.look(pixels))
    with pytest.raises(ValueError, match="9 fits none"):
        run_to_end(recorded.look(torch.zeros(SLOTS + 1, 64, 64, 3, dtype=torch.uint8)))


def test_prompts_of_the_tasks_meet_few_shapes() -> None:
    """Large's sizes: the tasks' own sentences have a bucket for themselves, and any prompt has one."""
    buckets = Buckets.of(64, 192, 3, 8, 1025, 577, 1024, 16)
    assert buckets.prompts == (16, 32, 64, 256, 447)
    assert Buckets.of(4, 12, 3, 8, 21, 5, 25, 4).prompts == (16, 20)
    assert Buckets.of(4, 12, 3, 8, 21, 5, 15, 4).prompts == (10,)


def request(seed: int) -> Request:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Request(
        pixels, (0, *range(10 + seed, 14 + 3 * seed), 2), GenerationOptions(3, 12, 0, 3, True, 1.0)
    )


@pytest.fixture(params=[None, PlainRecorder()], ids=["plain", "recorded"])
def runner(model: Florence2Model, request: pytest.FixtureRequest) -> Runner:
    recorder: Recorder | None = request.param
    return Runner(model, SLOTS, picture_tokens=PICTURE_TOKENS, recorder=recorder)


def check_alone(runner: Runner, asked: Sequence[Request]) -> None:
    left = runner.encode(asked)
    while left:
        outcomes = dict(runner.step(left))
        left = [sequence for sequence in left if sequence not in outcomes]
        for sequence, outcome in outcomes.items():
            assert isinstance(outcome, Hypothesis)
            expected = generate_alone(runner.model, sequence.request, runner.rules)
            assert outcome.token_ids == expected.token_ids


@torch.inference_mode()
def test_an_encode_that_fails_or_is_given_up_gives_all_places_back(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was; and what it left in them, were it no numbers, harms nobody who gets them next."""
    write = Caches.write_cross

    def broken(self: Caches, slots: Tensor, cross: object) -> None:
        write(self, slots, cross)  # type: ignore[arg-type]
        self.cross_values[:, slots] = torch.nan
        raise RuntimeError("a kernel failed")

    asked = [request(seed) for seed in range(5)]
    with monkeypatch.context() as patched:
        patched.setattr(Caches, "write_cross", broken)
        with pytest.raises(RuntimeError, match="a kernel failed"):
            runner.encode(asked)
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    for stop in range(1, 1 + sum(1 for _ in runner.encode_parts([SequenceState(request(9))]))):
        runner.reset()
        parts = runner.encode_parts([SequenceState(one) for one in asked])
        for _ in range(stop):
            next(parts)
        parts.close()
        runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    with pytest.raises(IndexError, match="no free slot"):
        runner.encode([request(seed) for seed in range(SLOTS + 1)])
    check_alone(runner, asked)
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)


@torch.inference_mode()
def test_encodes_of_all_sizes_are_recorded_before_anybody_comes(model: Florence2Model) -> None:
    """Largest first, since all share one memory; batches of short prompts are replayed from then on, after a
    fault too."""
    recorder = Watched()
    runner = Runner(
        model, 4, picture_tokens=PICTURE_TOKENS, encode_batch=3, picture_size=(64, 64), recorder=recorder
    )
    runner.prepare()
    for _ in range(2):
        pictures = [len(results[0]) for results in recorder.results if results]
        assert pictures == [3, 2, 1]
        steps = recorded_steps(runner)
        assert len(recorder.results) == 2 * len(pictures) + steps
        for count in (1, 3, 2):
            check_alone(runner, [request(seed) for seed in range(count)])
        assert len(recorder.results) - recorded_steps(runner) == 2 * len(pictures)
        recorder.results.clear()
        runner.reset()
    with pytest.raises(ValueError, match="4 fits none"):
        runner.encode([request(seed) for seed in range(4)])
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    assert len(Runner(model, 4, encode_batch=9, recorder=recorder)._buckets().pictures) == 3


def recorded_steps(runner: Runner) -> int:
    """Shapes of steps that are recorded."""
    assert isinstance(runner._steps, BucketSteps)
    return sum(1 for replay in runner._steps._replays.values() if "first" not in replay.__qualname__)
