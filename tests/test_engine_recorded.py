"""What recorded work must bear: recordings share their memory, and results may come a step late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import load_float32
from tiny import make_native
from torch import Tensor

from florence.engine.graphs import PlainRecorder, Replay, Work
from florence.engine.loop import Engine
from florence.engine.reference import generate_alone
from florence.engine.request import GenerationOptions, Request
from florence.engine.runner import Runner
from florence.engine.scheduler import BatchLimits, TokenLimits
from florence.model.florence2 import Florence2Model

PICTURE_TOKENS, PROMPT_ROOM, PATIENCE_S = 5, 30, 60


class SharedPool:
    """Does what graphs of one pool do: whoever is replayed writes over the results of all others."""

    def __init__(self) -> None:
        self._all: list[list[Tensor]] = []

    def record(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        results: list[Tensor] = []
        self._all.append(results)

        def replay() -> None:
            made = [result.clone() for result in work()]
            for other in self._all:
                for result in other:
                    result.fill_(-1 if result.dtype == torch.int64 else torch.nan)
            if not results:
                results.extend(made)
            for result, new in zip(results, made, strict=True):
                result.copy_(new)

        return replay, results


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


def request(seed: int, *, most: int = 20, least: int = 0, beams: int = 3) -> Request:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = GenerationOptions(beams, most, least, 3, True, 1.0)
    return Request(pixels, (0, *range(10 + seed, 14 + 3 * seed), 2), options)


@contextmanager
def engine(runner: Runner, **limits: float) -> Iterator[Engine]:
    tokens = TokenLimits(runner.sizes.decoder_room, PROMPT_ROOM)
    running = Engine(runner, tokens, BatchLimits(max_batch_size=8, **limits))  # type: ignore[arg-type]
    yield running
    running.close()


def alone(runner: Runner, asked: Request) -> tuple[int, ...]:
    with torch.inference_mode():
        return tuple(generate_alone(runner.model, asked, runner.rules).token_ids)


@pytest.mark.parametrize("feature_bytes", [0, 2**27])
def test_a_step_between_two_parts_of_an_encode_spoils_nothing(
    model: Florence2Model, feature_bytes: int
) -> None:
    """With next to no budget for encodes, a step is taken after each part of them."""
    runner = Runner(
        model, 8, picture_tokens=PICTURE_TOKENS, recorder=SharedPool(), late=True, feature_bytes=feature_bytes
    )
    expected = [alone(runner, request(seed, least=12)) for seed in range(6)]
    with engine(runner, max_encode_batch=2, encode_budget_s=1e-4) as running:
        futures = [running.submit(request(number % 6, least=12)) for number in range(30)]
        for number, future in enumerate(futures):
            assert future.result(PATIENCE_S).token_ids == expected[number % 6]


@pytest.mark.parametrize("recorded", [True, False])
def test_one_that_fills_its_room_runs_along_for_a_step_and_writes_nothing(
    model: Florence2Model, recorded: bool
) -> None:
    """Its neighbours get what they would get alone, and so does whoever has the place next."""
    recorder = PlainRecorder() if recorded else None
    runner = Runner(model, 4, picture_tokens=PICTURE_TOKENS, decoder_room=12, recorder=recorder, late=True)
    asked = [request(0, most=12, least=12), request(1, most=12), request(2, most=12, least=12)] * 3
    with engine(runner) as running:
        futures = [running.submit(each) for each in asked]
        for each, future in zip(asked, futures, strict=True):
            assert future.result(PATIENCE_S).token_ids == alone(runner, each)
