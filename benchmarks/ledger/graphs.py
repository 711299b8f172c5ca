"""The number of graphs that the engine captures: before it is ready, and after all tasks have been served.

Only shapes are counted; the work itself is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from random_models import SIDE, picture_tokens

from florence.engine.device.beams.search_state import SearchState
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.caches import Caches
from florence.types.bounds import MAX_BEAMS
from ledger.fakes import FakeEngine, Shape, without_work

PROMPTS = (8, 10, 11, 12, 13, 14, 15, 21, 27, 40)
"""Tokens of the tasks' prompts: without a text, with a region, with a caller's sentence."""

LONGEST = 160
"""Tokens of the longest answers on photographs."""


def count_graphs(shape: Shape, crowds: int) -> tuple[int, int]:
    """Graphs captured before the engine is ready, and after that while it serves random batches of all tasks
    with 1 to 8 beams. Use it in `fakes()`."""
    with without_work(), without_starts():
        engine = FakeEngine(shape)
        runner = engine.runner
        runner.picture_size = (SIDE[shape.size], SIDE[shape.size])
        runner.prepare()
        before = engine.captured
        dice = random.Random(0)
        for _ in range(crowds):
            encode(engine, dice)
            step(engine, dice)
    return before, engine.captured - before


def encode(engine: FakeEngine, dice: random.Random) -> None:
    """Encode twice, since the second time is captured."""
    shape, runner = engine.shape, engine.runner
    count, prompt = dice.randint(1, shape.encode_batch), dice.choice(PROMPTS)
    pixels = np.zeros((SIDE[shape.size], SIDE[shape.size], 3), np.uint8)
    options = GenerationOptions(1, 20, 0, 3, True, 1.0)
    for _ in range(2):
        runner.features.clear()
        request = Request(pixels, (0,) * prompt, options, digest=b"the picture")
        for sequence in runner.encode([request] * count):
            runner.drop(sequence)


def step(engine: FakeEngine, dice: random.Random) -> None:
    """Step a random batch: most requests with the usual beams, and any lengths in any order."""
    runner = engine.runner
    crowd: list[SequenceState] = []
    usual = dice.random() < 0.5
    pixels = np.zeros((1, 1, 3), np.uint8)
    for _ in range(dice.randint(1, engine.shape.slots)):
        beams = engine.shape.beams if usual else dice.randint(1, MAX_BEAMS)
        if not runner.slots.fits([beams]):
            break
        request = Request(pixels, (0,) * dice.choice(PROMPTS), GenerationOptions(beams, 20, 0, 3, True, 1.0))
        sequence = SequenceState(request, steps=dice.randrange(LONGEST))
        tokens = picture_tokens(engine.shape.size)
        sequence.place(runner.slots.take(beams), tokens, tokens + len(request.prompt_ids))
        crowd.append(sequence)
    left = [sequence for sequence in crowd if dice.random() < 0.7] or crowd[:1]  # some have already ended
    for _ in range(2):
        runner.step(left)
    for sequence in crowd:
        runner.drop(sequence)


@contextmanager
def without_starts() -> Iterator[None]:
    """Skip search starts and cache wipes, which are slow on fake tensors."""
    nothing = lambda *_, **__: None  # noqa: E731
    with patch.object(Caches, "wipe", nothing), patch.object(SearchState, "start", nothing):
        yield
