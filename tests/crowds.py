"""Requests for tiny models, and an engine that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from alone import alone

from florence.engine.config import EngineConfig
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.request import GenerationOptions, Request

PROMPT_ROOM = 80


def request(seed: int, *, most: int = 20, least: int = 0, beams: int = 3) -> Request:
    """A request with pixels and a prompt made from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = GenerationOptions(beams, most, least, 3, True, 1.0)
    return Request(pixels, (0, *range(10 + seed, 14 + 3 * seed), 2), options)


@contextmanager
def engine(runner: Runner, **limits: Any) -> Iterator[Engine]:
    """An engine on this runner, closed at the end."""
    room = {"max_new_tokens": runner.sizes.decoder_room, "max_prompt_tokens": PROMPT_ROOM}
    running = Engine(runner, EngineConfig(**{"max_batch_size": 8, **room, **limits}))
    yield running
    running.close()


def ids_alone(runner: Runner, asked: Request) -> tuple[int, ...]:
    """The token ids that the plain search gives for the request alone."""
    return tuple(alone(runner.model, asked, runner.rules).token_ids)


def crowd(count: int) -> list[Request]:
    """Requests with 1 to 8 beams, prompts of different lengths, and short and long answers."""
    asked = [request(number % 6, beams=1 + number % 8) for number in range(count)]
    long = (0, *range(10, 10 + 66), 2)
    return [replace(each, prompt_ids=long) if number % 5 == 0 else each for number, each in enumerate(asked)]
