"""What recorded work must bear: recordings share their memory, and results may come a step late."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import load_float32
from shared_pool import SharedPool
from tiny import make_native
from torch.utils._python_dispatch import TorchDispatchMode

from florence.engine.config import EngineConfig
from florence.engine.device import encodes, graphs
from florence.engine.device.graphs import BucketSteps, PlainRecorder
from florence.engine.device.reference import generate_alone
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.request import GenerationOptions, Request
from florence.model.caches import Caches
from florence.model.chunks import Chunks, run_to_end, waiting
from florence.model.florence2 import Florence2Model

PICTURE_TOKENS, PROMPT_ROOM, PATIENCE_S = 5, 30, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


def request(seed: int, *, most: int = 20, least: int = 0, beams: int = 3) -> Request:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = GenerationOptions(beams, most, least, 3, True, 1.0)
    return Request(pixels, (0, *range(10 + seed, 14 + 3 * seed), 2), options)


@contextmanager
def engine(runner: Runner, **limits: Any) -> Iterator[Engine]:
    room = {"max_new_tokens": runner.sizes.decoder_room, "max_prompt_tokens": PROMPT_ROOM}
    running = Engine(runner, EngineConfig(max_batch_size=8, **room, **limits))
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
    with engine(runner, max_encode_batch=2, encode_budget_ms=0.1) as running:
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


def recorded_beams(runner: Runner) -> set[int]:
    assert isinstance(runner._steps, BucketSteps)
    return {key.shape.beams for key in runner._steps._replays}


def test_old_buffers_go_before_new_ones_are_made_and_steps_are_recorded_again(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device has no room for two sets of caches, and a pool whose graphs are gone takes no new ones."""
    recorder = SharedPool()
    runner = Runner(model, 4, picture_tokens=PICTURE_TOKENS, recorder=recorder, late=True)
    runner.prepare()
    prepared = recorded_beams(runner)
    expected = alone(runner, request(1))
    left = runner.encode([request(0), request(1)])
    runner.encode([request(2), request(3)])
    for _ in range(3):
        runner.step(left)
    old = weakref.ref(runner.caches), weakref.ref(runner.state), weakref.ref(runner._encodes)
    there: list[bool] = []
    make = Caches.__init__

    def watched(self: Caches, *given: Any, **named: Any) -> None:
        there.append(any(each() is not None for each in old))
        make(self, *given, **named)

    monkeypatch.setattr(Caches, "__init__", watched)
    runner.reset()
    assert there == [False]
    assert recorder.resets == 1
    assert recorded_beams(runner) == prepared
    with engine(runner) as running:
        assert running.submit(request(1)).result(PATIENCE_S).token_ids == expected


@pytest.mark.parametrize("beams", [1, 3, 8])
def test_steps_of_the_checkpoints_own_number_of_beams_are_recorded_first(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    generation = replace(model.config.generation, num_beams=beams)
    monkeypatch.setattr(model, "config", replace(model.config, generation=generation))
    runner = Runner(model, 2, picture_tokens=PICTURE_TOKENS, decoder_room=20, recorder=PlainRecorder())
    runner.prepare()
    assert recorded_beams(runner) == {beams}


def test_recording_before_the_first_request_leaves_the_caches_empty(model: Florence2Model) -> None:
    """Its steps are of nobody, whose attention sees nothing and gives no numbers; so too where somebody
    was."""
    runner = Runner(model, 4, picture_tokens=PICTURE_TOKENS, decoder_room=20, recorder=PlainRecorder())
    for _ in range(2):
        runner.prepare()
        assert sum(int(buffer.count_nonzero()) for buffer in runner.caches.buffers) == 0
        left = runner.encode([request(0), request(1)])
        for _ in range(3):
            runner.step(left)
        for sequence in left:
            runner.drop(sequence)


def test_shapes_beyond_the_most_run_unrecorded_and_give_the_same(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, for steps and for encodes."""
    monkeypatch.setattr(graphs, "MOST_RECORDED", 2)
    monkeypatch.setattr(encodes, "MOST_RECORDED", 1)
    runner = Runner(model, 8, picture_tokens=PICTURE_TOKENS, recorder=SharedPool(), late=True)
    asked = [request(number % 6, beams=1 + number % 5) for number in range(16)]
    with engine(runner, max_encode_batch=3) as running:
        futures = [running.submit(each) for each in asked]
        for each, future in zip(asked, futures, strict=True):
            assert future.result(PATIENCE_S).token_ids == alone(runner, each)
    assert isinstance(runner._steps, BucketSteps)
    assert len(runner._steps._replays) == 2
    said = [record.message for record in caplog.records if "unrecorded" in record.message]
    assert sorted(message.split()[3] for message in said) == ["encodes", "steps"]


def test_a_search_begins_without_a_copy_from_the_host(model: Florence2Model) -> None:
    """On a GPU each would wait for all steps that have been sent."""

    class Copies(TorchDispatchMode):
        seen: list[str] = []  # noqa: RUF012  (of this one test)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:  # the names are torch's
            if any(word in str(func) for word in ("copy", "lift", "index_put")):
                self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    runner = Runner(model, 4)
    with Copies() as copies:
        runner.state.start(1, (0, 3, 4), request(0).options)
        runner.caches.wipe(1, (0, 3, 4))
    assert copies.seen == []
    assert runner.state.ancestry[1, :3, 0].tolist() == [0, 3, 4]


def test_each_part_ends_when_the_device_has_done_it() -> None:
    """The last one too, and the parts are closed with those that wait for them."""
    events: list[str] = []

    def parts() -> Chunks[int]:
        try:
            for number in range(2):
                events.append(f"part {number}")
                yield
            return 7
        finally:
            events.append("closed")

    assert run_to_end(waiting(parts(), lambda: events.append("waited"))) == 7
    assert events == ["part 0", "waited", "part 1", "waited", "closed", "waited"]
    events.clear()
    begun = waiting(parts(), lambda: events.append("waited"))
    next(begun)
    begun.close()
    assert events == ["part 0", "waited", "closed"]
