"""Encodes write only into the slots of their requests, whatever the padding of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from alone import alone
from goldens import load_float32
from tiny import make_native
from torch import Tensor

from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.buckets import Buckets
from florence.engine.device.capture.graphs import EagerCapturer, GraphCapturer, Replay, Work
from florence.engine.device.encode.encodes import BucketEncodes, Encodes
from florence.engine.device.memory import DeviceMemory
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.caches import Caches, CacheSizes
from florence.model.chunks import run_to_end
from florence.model.florence2 import Florence2Model

PICTURE_TOKENS, SLOTS = 5, 8
SIZES = CacheSizes(SLOTS, 3 * SLOTS, encoder_room=128, decoder_room=20)
BUCKETS = Buckets.of(
    slots=SLOTS,
    rows=3 * SLOTS,
    beams=3,
    room=20,
    picture_tokens=PICTURE_TOKENS,
    encoder_room=SIZES.encoder_room,
    pictures=SLOTS,
)
UNTOUCHED = 7.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    """A tiny model."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


class Watched(EagerCapturer):
    """A capturer that keeps the results of captured work and replays it once."""

    def __init__(self) -> None:
        self.results: list[Sequence[Tensor]] = []

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        captured = super().capture(work)
        captured[0]()
        self.results.append(captured[1])
        return captured


def caches_of(model: Florence2Model) -> Caches:
    """Caches filled with a known value."""
    text = model.config.text
    caches = Caches(SIZES, text.decoder, text.d_model, torch.device("cpu"), torch.float32)
    caches.cross_keys.fill_(UNTOUCHED)
    caches.cross_values.fill_(UNTOUCHED)
    return caches


def prompts_of(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Prompts of these lengths."""
    return [tuple(range(10 + length, 10 + 2 * length)) for length in lengths]


@torch.inference_mode()
def test_a_captured_encode_fills_its_slots_as_the_plain_one_and_no_others(model: Florence2Model) -> None:
    """A captured encode writes the plain encode's values into its slots and nothing elsewhere, after full and
    partly filled batches."""
    dice = np.random.default_rng(0)
    capturer = Watched()
    caches, expected = caches_of(model), caches_of(model)
    memory = DeviceMemory()
    captured = BucketEncodes(model, caches, memory, BUCKETS, capturer)
    captured.prepare(64, 64)
    plain = Encodes(model, expected, memory)
    for number, count in enumerate((4, 3, 4, 3, 8, 6, 5, 6, 1, 1, 1)):
        slots = [int(slot) for slot in dice.permutation(SLOTS)[:count]]
        lengths = [int(length) for length in dice.integers(2, 110 if number % 2 else 16, count)]
        pictures = torch.randn(count, PICTURE_TOKENS, model.config.text.d_model)
        for buffer in (*buffers(caches), *buffers(expected)):
            buffer.fill_(UNTOUCHED)
        run_to_end(captured.write_cross_kv(pictures, prompts_of(lengths), slots, [0] * len(slots)))
        run_to_end(plain.write_cross_kv(pictures, prompts_of(lengths), slots, [0] * len(slots)))
        for mine, other in zip(buffers(caches), buffers(expected), strict=True):
            for slot, length in zip(slots, lengths, strict=True):
                own = PICTURE_TOKENS + length
                torch.testing.assert_close(mine[:, slot, :, :own], other[:, slot, :, :own])
            absent = sorted(set(range(SLOTS)) - set(slots))
            assert (mine[:, absent] == UNTOUCHED).all()
    towers, encoders = BUCKETS.pictures, len(BUCKETS.pictures) * len(BUCKETS.prompts)
    assert [len(results) for results in capturer.results] == [1] * len(towers) + [0] * encoders


def buffers(caches: Caches) -> tuple[Tensor, Tensor]:
    """The caches' cross-attention keys and values."""
    return caches.cross_keys, caches.cross_values


class Watching(DeviceMemory):
    """Memory that records the source of each copy."""

    def __init__(self) -> None:
        self.sources: list[int] = []

    def upload(self, values: Tensor) -> Tensor:
        self.sources.append(values.data_ptr())
        return super().upload(values)

    def store(self, values: Tensor, buffer: Tensor) -> None:
        self.sources.append(values.data_ptr())
        super().store(values, buffer)


@torch.inference_mode()
def test_pixels_go_from_where_they_were_read_to_the_device(model: Florence2Model) -> None:
    """Pixels are copied to the device directly from the reader's memory."""
    memory = Watching()
    captured = BucketEncodes(model, caches_of(model), memory, BUCKETS, EagerCapturer())
    captured.prepare(64, 64)
    pixels = [torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8) for _ in range(3)]
    memory.sources.clear()
    tokens = run_to_end(captured.encode_images(pixels, [0] * len(pixels)))
    assert memory.sources == [picture.data_ptr() for picture in pixels]
    torch.testing.assert_close(tokens, model.encode_images(torch.stack(pixels)))


@torch.inference_mode()
def test_pictures_of_a_padded_batch_are_those_of_the_plain_one(model: Florence2Model) -> None:
    """A padded batch gives the plain batch's features, also for another picture size; more pictures than the
    largest batch are refused."""
    captured = BucketEncodes(model, caches_of(model), DeviceMemory(), BUCKETS, EagerCapturer())
    captured.prepare(64, 64)
    for count, side in ((4, 64), (3, 64), (4, 32), (4, 64), (3, 64)):
        pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
        found = run_to_end(captured.encode_images(pixels, [0] * count))
        torch.testing.assert_close(found, model.encode_images(pixels))
    with pytest.raises(ValueError, match="9 fits none"):
        run_to_end(captured.encode_images(torch.zeros(SLOTS + 1, 64, 64, 3, dtype=torch.uint8), [0] * 9))


def request(seed: int) -> Request:
    """A request with pixels and a prompt made from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Request(
        pixels, (0, *range(10 + seed, 14 + 3 * seed), 2), GenerationOptions(3, 12, 0, 3, True, 1.0)
    )


@pytest.fixture(params=[None, EagerCapturer()], ids=["plain", "captured"])
def runner(model: Florence2Model, request: pytest.FixtureRequest) -> Runner:
    """A runner with plain or with captured work."""
    capturer: GraphCapturer | None = request.param
    return Runner(model, SLOTS, backend=Backend(capturer=capturer), picture_tokens=PICTURE_TOKENS)


def check_alone(runner: Runner, asked: Sequence[Request]) -> None:
    """Check that the requests get the answers that they get alone."""
    left = runner.encode(asked)
    while left:
        outcomes = dict(runner.step(left))
        left = [sequence for sequence in left if sequence not in outcomes]
        for sequence, outcome in outcomes.items():
            assert isinstance(outcome, Hypothesis)
            expected = alone(runner.model, sequence.request, runner.rules)
            assert outcome.token_ids == expected.token_ids


@pytest.mark.slow
@torch.inference_mode()
def test_an_encode_that_fails_or_is_closed_frees_all_slots(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encode that fails, or is closed after any chunk, frees all slots, and its NaN does not reach later
    requests."""
    write = Caches.write_cross_kv

    def broken(self: Caches, slots: Tensor, cross: object) -> None:
        write(self, slots, cross)  # type: ignore[arg-type]
        self.cross_values[:, slots] = torch.nan
        raise RuntimeError("a kernel failed")

    asked = [request(seed) for seed in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(Caches, "write_cross_kv", broken)
        with pytest.raises(RuntimeError, match="a kernel failed"):
            runner.encode(asked)
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    for stop in range(1, 1 + sum(1 for _ in runner.encode_parts([SequenceState(request(9))]))):
        runner.reset()
        chunks = runner.encode_parts([SequenceState(one) for one in asked])
        for _ in range(stop):
            next(chunks)
        chunks.close()
        runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    with pytest.raises(IndexError, match="no free slot"):
        runner.encode([request(seed) for seed in range(SLOTS + 1)])
    check_alone(runner, asked)
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)


@pytest.mark.slow
@torch.inference_mode()
def test_encodes_of_all_sizes_are_captured_before_the_first_request(model: Florence2Model) -> None:
    """All sizes of encodes are captured before the first request, largest first since they share memory.

    Later batches of any prompts are replayed, also after a reset.
    """
    capturer = Watched()
    backend = Backend(capturer=capturer)
    runner = Runner(
        model, 4, picture_tokens=PICTURE_TOKENS, encode_batch=3, picture_size=(64, 64), backend=backend
    )
    runner.prepare()
    for _ in range(2):
        pictures = [len(results[0]) for results in capturer.results if results]
        assert pictures == [3, 2, 1]
        captured = len(capturer.results)
        prompts = len(runner.buckets().prompts)
        assert captured == (1 + prompts) * len(pictures) + captured_steps(runner)
        for count in (1, 3, 2):
            check_alone(runner, [request(seed) for seed in range(count)])
        check_alone(runner, [request(30)])  # a long prompt
        assert len(capturer.results) == captured
        capturer.results.clear()
        runner.reset()
    with pytest.raises(ValueError, match="4 fits none"):
        runner.encode([request(seed) for seed in range(4)])
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    assert len(Runner(model, 4, encode_batch=9, backend=backend).buckets().pictures) == 3


def captured_steps(runner: Runner) -> int:
    """The number of captured shapes of steps."""
    steps = runner.buffers.steps
    assert isinstance(steps, BucketSteps)
    return len(steps.captured)
