"""The engine as a GPU runs it: captured steps and encodes against plain ones, resets, cancels, two engines.

`pytest -m gpu` runs this on a CUDA device, and needs torch, transformers, safetensors and Pillow, but nothing
that only the service needs. A default run rehearses it on the CPU, where replays repeat the work and
overwrite each other's results, as graphs of one memory pool may.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from goldens import imagenet_normalize
from shared_pool import SharedPool
from tiny import make_native
from two_views import TwoViews

from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.engine.config import DEFAULT_ENCODE_BUDGET_MS, EncodeStreamChoice, EngineConfig
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis, generate_alone
from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.graphs import EagerCapturer, GraphCapturer
from florence.engine.device.encode.stream import EncodeStream
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.encoding import PLAIN
from florence.model.florence2 import Florence2Model
from florence.model.kernels.plain import product_float32
from florence.runtime.futures import generate

SLOTS, PICTURE_TOKENS, ROOM, LONGEST_PROMPT, PATIENCE_S = 9, 5, 80, 100, 120

pytestmark = pytest.mark.filterwarnings("default")  # the installed versions may warn

DENSE = "cuda without kernels"
DEVICES = ["cpu", *(pytest.param(kind, marks=pytest.mark.gpu) for kind in ("cuda", DENSE))]
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16

SIZES: dict[str, dict[str, Any]] = {
    "text_config": {"d_model": 64},
    "vision_config": {
        "embed_dim": [16, 32, 32, 64],
        "num_heads": [1, 2, 2, 4],
        "num_groups": [1, 1, 2, 2],
        "projection_dim": 64,
    },
}
"""Heads and groups of channels have 16 or 32 numbers, as the kernels for GPUs require."""


CONFIG = EngineConfig(
    max_batch_size=SLOTS, max_encode_batch=4, max_new_tokens=ROOM, max_prompt_tokens=LONGEST_PROMPT
)


class Answer(NamedTuple):
    """The token ids of an answer and their log-probabilities."""

    token_ids: list[int]
    token_logprobs: list[float]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, some of whose answers end before their limit."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    make_native(directory, end=2.0, **SIZES)
    return directory


def load(checkpoint: Path, kind: str, dtype: torch.dtype) -> Florence2Model:
    """Load the checkpoint on the device, with weights in a GPU's layout."""
    config, device = read_config(checkpoint), torch.device("cpu" if kind == "cpu" else "cuda:0")
    vocab = config.text.vocab_size
    model = load_model(checkpoint, config, imagenet_normalize(), vocab, device, dtype)
    if kind == "cpu":
        model.lay_out_for_gpu(product_float32)
    return model


def backend_of(
    model: Florence2Model,
    kind: str,
    capturer: GraphCapturer | None = None,
    encode_stream: EncodeStreamChoice = "off",
) -> Backend:
    """The backend of a GPU, or its rehearsal on the CPU; `capturer` replaces the device's own. It checks that
    the kernels are used where they are asked for, since the tests would also pass with PyTorch's
    operations in their place."""
    if kind != "cpu":
        sizes = model.config
        config = EngineConfig(cuda_kernels="off" if kind == DENSE else "auto", encode_stream=encode_stream)
        backend = Backend.for_device(
            model.device, model.dtype, sizes.text.decoder_head_dim, sizes.vision, config
        )
        assert backend.attention.grouped == (backend.encode is not PLAIN) == (kind != DENSE)
        return backend if capturer is None else replace(backend, capturer=capturer)
    return Backend(
        capturer=capturer or SharedPool(),
        delayed_readback=True,
        free_host_reads=False,
        encode_stream=EncodeStream() if encode_stream == "off" else TwoViews(),
        encode_budget_s=DEFAULT_ENCODE_BUDGET_MS / 1000 if encode_stream == "auto" else None,
        pins_attention=True,
    )


def runner_of(
    model: Florence2Model,
    kind: str,
    capturer: GraphCapturer | None = None,
    encode_stream: EncodeStreamChoice = "off",
) -> Runner:
    """A runner on that backend."""
    return Runner(
        model,
        SLOTS,
        backend=backend_of(model, kind, capturer, encode_stream),
        picture_tokens=PICTURE_TOKENS,
        encode_batch=4,
        picture_size=(64, 64),
        encoder_room=PICTURE_TOKENS + LONGEST_PROMPT,
        decoder_room=ROOM,
    )


def random_request(dice: random.Random) -> Request:
    """A request with a random picture, prompt, number of beams, length and settings; some have a long prompt
    or answer."""
    most = dice.choice([4, 12, 24, 24, ROOM])
    options = GenerationOptions(
        num_beams=dice.choice([1, 2, 3, 3, 3, 5, 8]),
        max_new_tokens=most,
        min_new_tokens=dice.choice([0, 0, most]),
        no_repeat_ngram_size=dice.choice([0, 3]),
        early_stopping=dice.choice([True, False, "never"]),
        length_penalty=dice.choice([0.0, 1.0, 2.0]),
    )
    pixels = np.random.default_rng(dice.randint(0, 5)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    length = dice.choice([1, 10, 12, 25, 40, LONGEST_PROMPT - 2])
    return Request(pixels, (0, *(dice.randint(3, 1000) for _ in range(length)), 2), options)


def decode(runner: Runner, asked: Sequence[Request], dice: random.Random) -> dict[int, Answer]:
    """The answers of requests that join a few at a time, by number. Some are cancelled before their first
    step or in the middle, and have no answer."""
    coming, active = list(enumerate(asked)), dict[SequenceState, int]()
    answers: dict[int, Answer] = {}
    while coming or active:
        fitting = runner.slots.fits(request.options.num_beams for _, request in coming)
        if fitting and (not active or dice.random() < 0.4):
            joining = coming[: min(fitting, dice.randint(1, 4))]
            coming = coming[len(joining) :]
            sequences = runner.encode([request for _, request in joining])
            active |= zip(sequences, (number for number, _ in joining), strict=True)
        if len(active) > 2 and dice.random() < 0.05:
            gone = dice.choice([each for each in active if not each.ended] or list(active))
            runner.drop(gone)
            del active[gone]
        for sequence, outcome in runner.step(list(active)):
            assert isinstance(outcome, Hypothesis)
            answers[active.pop(sequence)] = Answer(outcome.token_ids, outcome.token_logprobs)
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    return answers


def alone(model: Florence2Model, rules_of: Runner, request: Request) -> list[int]:
    """The token ids of the plain search for this request alone."""
    return generate_alone(model, request, rules_of.rules).token_ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@torch.inference_mode()
def test_captured_work_gives_the_answers_of_plain_work(
    checkpoint: Path, kind: str, dtype: torch.dtype
) -> None:
    """Captured work gives the same ids and log-probabilities as plain work, for prompts of all lengths and
    any beams, with cancels, and again after a reset. In float32 they also equal the plain search's, one
    request at a time."""
    model = load(checkpoint, kind, dtype)
    asked = [random_request(random.Random(seed)) for seed in range(18)]
    captured, plain = runner_of(model, kind), runner_of(model, kind, EagerCapturer())
    for runner in (captured, plain):
        runner.prepare()
    expected = decode(plain, asked, random.Random(1))
    assert 9 < len(expected) < len(asked)
    for _ in range(2):
        answers = decode(captured, asked, random.Random(1))
        assert answers.keys() == expected.keys()
        for number, answer in answers.items():
            assert answer.token_ids == expected[number].token_ids, asked[number].options
            assert answer.token_logprobs == pytest.approx(expected[number].token_logprobs, abs=1e-3)
        captured.reset()
    if dtype is FLOAT32:
        for number, answer in expected.items():
            assert answer.token_ids == alone(model, plain, asked[number]), asked[number].options


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEVICES)
@torch.inference_mode()
def test_everything_is_captured(checkpoint: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every shape of steps and encodes is captured, also after a reset; attention is chosen before that."""
    caplog.set_level("INFO")
    runner = runner_of(load(checkpoint, kind, BFLOAT16), kind)
    runner.prepare()
    for _ in range(2):
        steps = runner.buffers.steps
        assert isinstance(steps, BucketSteps)
        assert len(steps.captured) == len(runner.buckets().steps)
        runner.reset()
    assert "can't be captured" not in caplog.text
    assert "shapes agree" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEVICES)
def test_two_engines_on_one_device_do_not_disturb_each_other(checkpoint: Path, kind: str) -> None:
    """Two engines start, capture and serve at once; each request gets the answer that it gets alone."""
    models = [load(checkpoint, kind, FLOAT32) for _ in range(2)]
    asked = [random_request(random.Random(100 + seed)) for seed in range(10)]
    runners = [runner_of(model, kind) for model in models]
    engines = [Engine(runner, CONFIG) for runner in runners]
    futures = [generate(engines[number % 2], request) for number, request in enumerate(asked * 2)]
    futures += [generate(engines[1 - number % 2], request) for number, request in enumerate(asked)]
    answers = [future.result(PATIENCE_S).token_ids for future in futures]
    for engine in engines:
        engine.close()
    with torch.inference_mode():
        expected = [tuple(alone(models[0], runners[0], request)) for request in asked]
    assert answers == expected * 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("choice", ["auto", "on"])
def test_encodes_beside_steps_change_no_answer(
    checkpoint: Path, kind: str, choice: EncodeStreamChoice
) -> None:
    """Encodes that run beside steps change no answer, whether set so or decided by a trial at the start. The
    trial finds that both ways compute the same numbers, and its decision survives a reset."""
    model = load(checkpoint, kind, FLOAT32)
    asked = [random_request(random.Random(200 + seed)) for seed in range(9)]
    runner = runner_of(model, kind, encode_stream=choice)
    with torch.inference_mode():
        expected = [tuple(alone(model, runner, request)) for request in asked]
    for _ in range(2):
        engine = Engine(runner, CONFIG)
        futures = [generate(engine, request) for request in asked]
        assert [future.result(PATIENCE_S).token_ids for future in futures] == expected
        engine.close()
        decision = runner.decision
        assert decision is not None
        assert decision.runs_beside or choice == "auto"
        if choice == "auto":
            assert decision.between is not None, decision.why
            assert decision.beside is not None
        runner.encode_parts([SequenceState(each) for each in asked[:3]]).send(None)
        runner.reset()
        assert runner.decision is decision


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cuda", DENSE])
@torch.inference_mode()
def test_token_ids_on_a_gpu_are_those_of_a_cpu(checkpoint: Path, kind: str) -> None:
    """In float32 a GPU gives a CPU's token ids while requests join and leave."""
    asked = [random_request(random.Random(seed)) for seed in range(30)]
    runners = [runner_of(load(checkpoint, each, FLOAT32), each) for each in (kind, "cpu")]
    for runner in runners:
        runner.prepare()
    mine, theirs = (decode(runner, asked, random.Random(1)) for runner in runners)
    assert mine.keys() == theirs.keys()
    assert {number: answer.token_ids for number, answer in mine.items()} == {
        number: answer.token_ids for number, answer in theirs.items()
    }
