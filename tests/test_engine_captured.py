"""Captured work shares memory, and its results may arrive one step late; answers stay the same."""

from __future__ import annotations

import random
import weakref
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from crowds import crowd, engine, ids_alone, request
from goldens import load_float32
from shared_pool import SharedPool
from tiny import make_native
from torch import Tensor

# PyTorch offers fake tensors and dispatch modes in private modules only.
from torch.utils._python_dispatch import TorchDispatchMode
from waiting import PATIENCE_S, wait_until

from florence.engine.device.backend import Backend
from florence.engine.device.beams.search_state import RUNNING, starts_of
from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.graphs import CapturedWork, EagerCapturer, GraphCapturer, Replay, Work
from florence.engine.device.runner import Runner
from florence.engine.slots import Slot
from florence.model.caches import Caches
from florence.model.chunks import Chunks, run_to_end, within, yielding
from florence.model.florence2 import Florence2Model
from florence.runtime.futures import generate

PICTURE_TOKENS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    """A tiny model."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


def gpu_like(capturer: GraphCapturer | None) -> Backend:
    """A backend like a GPU's: fixed shapes, results one step late, no reads on the host."""
    return Backend(capturer=capturer, delayed_readback=True, free_host_reads=False)


@pytest.mark.slow
@pytest.mark.parametrize("feature_bytes", [0, 2**27])
def test_a_step_between_two_chunks_of_an_encode_changes_no_answer(
    model: Florence2Model, feature_bytes: int
) -> None:
    """Steps between the chunks of an encode change no answer."""
    runner = Runner(
        model, 8, picture_tokens=PICTURE_TOKENS, backend=gpu_like(SharedPool()), feature_bytes=feature_bytes
    )
    expected = [ids_alone(runner, request(seed, least=12)) for seed in range(6)]
    with engine(runner, max_encode_batch=2, encode_budget_ms=0.1) as running:
        futures = [generate(running, request(number % 6, least=12)) for number in range(30)]
        for number, future in enumerate(futures):
            assert future.result(PATIENCE_S).token_ids == expected[number % 6]


@pytest.mark.parametrize("captured", [True, False])
def test_a_finished_request_that_has_filled_its_room_writes_nothing_in_its_extra_step(
    model: Florence2Model, captured: bool
) -> None:
    """After a request fills its room, other requests and the next one in its slot get the answers that they
    get alone."""
    backend = gpu_like(EagerCapturer() if captured else None)
    runner = Runner(model, 4, backend=backend, picture_tokens=PICTURE_TOKENS, decoder_room=12)
    asked = [request(0, most=12, least=12), request(1, most=12), request(2, most=12, least=12)] * 3
    with engine(runner) as running:
        futures = [generate(running, each) for each in asked]
        for each, future in zip(asked, futures, strict=True):
            assert future.result(PATIENCE_S).token_ids == ids_alone(runner, each)


@pytest.mark.parametrize(("waiting", "together"), [(1, 1), (3, 2), (7, 4), (13, 12), (14, 12)])
def test_requests_are_encoded_in_batches_that_are_captured(
    model: Florence2Model, waiting: int, together: int
) -> None:
    """Captured encodes are never padded, since padding takes as long as pictures do; uncaptured ones take all
    requests."""
    asked = [request(0, beams=1)] * waiting
    for backend, expected in ((gpu_like(SharedPool()), together), (Backend(), waiting)):
        runner = Runner(model, 16, picture_tokens=PICTURE_TOKENS, backend=backend, decoder_room=4)
        assert runner.fits(asked) == expected


def captured_beams(runner: Runner) -> set[int]:
    """The numbers of beams of the captured steps."""
    return {key.shape.beams for key in bucket_steps_of(runner).captured}


def bucket_steps_of(runner: Runner) -> BucketSteps:
    """The runner's captured steps."""
    steps = runner.buffers.steps
    assert isinstance(steps, BucketSteps)
    return steps


@pytest.mark.slow
def test_a_reset_frees_old_buffers_first_and_captures_steps_again(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset frees the old caches before it makes new ones, and captures the steps again."""
    capturer = SharedPool()
    runner = Runner(model, 4, picture_tokens=PICTURE_TOKENS, backend=gpu_like(capturer))
    runner.prepare()
    prepared = captured_beams(runner)
    expected = ids_alone(runner, request(1))
    left = runner.encode([request(0), request(1)])
    runner.encode([request(2), request(3)])
    for _ in range(3):
        runner.step(left)
    old = weakref.ref(runner.caches), weakref.ref(runner.state), weakref.ref(runner.buffers.encodes)
    there: list[bool] = []
    make = Caches.__init__

    def watched(self: Caches, *given: Any, **named: Any) -> None:
        there.append(any(each() is not None for each in old))
        make(self, *given, **named)

    monkeypatch.setattr(Caches, "__init__", watched)
    runner.reset()
    assert there == [False]
    assert capturer.resets == 1
    assert captured_beams(runner) == prepared
    with engine(runner) as running:
        assert generate(running, request(1)).result(PATIENCE_S).token_ids == expected


def test_capturing_before_the_first_request_leaves_the_caches_empty(model: Florence2Model) -> None:
    """Capturing leaves the caches empty, although steps without requests compute NaN."""
    runner = Runner(
        model, 4, picture_tokens=PICTURE_TOKENS, decoder_room=20, backend=Backend(capturer=EagerCapturer())
    )
    for _ in range(2):
        runner.prepare()
        assert sum(int(buffer.count_nonzero()) for buffer in runner.caches.buffers) == 0
        left = runner.encode([request(0), request(1)])
        for _ in range(3):
            runner.step(left)
        for sequence in left:
            runner.drop(sequence)


class Counted(SharedPool):
    """A capturer that counts captures, and refuses those whose number is in `refused`."""

    def __init__(self, refused: Container[int] = ()) -> None:
        super().__init__()
        self.refused, self.captures = refused, 0

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        self.captures += 1
        if self.captures in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().capture(work)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3, 5, 8])
def test_nothing_is_captured_once_requests_come(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    """All shapes are captured before the first request, for any default number of beams."""
    generation = replace(model.config.generation, num_beams=beams)
    monkeypatch.setattr(model, "config", replace(model.config, generation=generation))
    capturer = Counted()
    runner = Runner(
        model,
        9,
        picture_tokens=PICTURE_TOKENS,
        picture_size=(64, 64),
        decoder_room=70,
        backend=gpu_like(capturer),
    )
    runner.prepare()
    assert {1, 3, beams, 8} == captured_beams(runner)
    prepared = capturer.captures
    asked = crowd(24)
    with engine(runner) as running:
        wait_until(lambda: capturer.captures == 2 * prepared)  # captured again by the engine's thread
        futures = [generate(running, each) for each in asked]
        for each, future in zip(asked, futures, strict=True):
            assert future.result(PATIENCE_S).token_ids == ids_alone(runner, each)
    assert capturer.captures == 2 * prepared
    assert all(work.captured for work in bucket_steps_of(runner).prepared.values())


@pytest.mark.slow
@pytest.mark.parametrize("refused", [range(1000), {1, 4, 6, 15, 17}], ids=["all", "some"])
def test_work_that_can_not_be_captured_runs_uncaptured(
    model: Florence2Model, caplog: pytest.LogCaptureFixture, refused: Container[int]
) -> None:
    """Work that can't be captured is logged and runs uncaptured with the same answers, also after a reset."""
    capturer = Counted(refused)
    runner = Runner(
        model,
        8,
        picture_tokens=PICTURE_TOKENS,
        picture_size=(64, 64),
        decoder_room=30,
        backend=gpu_like(capturer),
    )
    asked = crowd(12)
    with engine(runner) as running:
        for _ in range(2):
            futures = [generate(running, each) for each in asked]
            for each, future in zip(asked, futures, strict=True):
                assert future.result(PATIENCE_S).token_ids == ids_alone(runner, each)
    said = [record.message for record in caplog.records if "can't be captured" in record.message]
    assert len(said) == sum(number in refused for number in range(1, capturer.captures + 1))
    assert {message.split()[1] for message in said} == {"encode", "step"}


def test_work_runs_once_before_the_first_capture(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All encodes, and all steps, run once uncaptured before the first of them is captured.

    The memory of an uncaptured encode is free again by then; otherwise memory for two would be needed.
    """
    done: list[str] = []
    for name in ("warm_up", "capture"):
        method = getattr(CapturedWork, name)

        def noted(work: Any, *arguments: Any, method: Any = method, name: str = name) -> Any:
            done.append(f"{name} {work.name.split()[1]}")
            return method(work, *arguments)

        monkeypatch.setattr(CapturedWork, name, noted)
    runner = Runner(
        model,
        8,
        picture_tokens=PICTURE_TOKENS,
        picture_size=(64, 64),
        decoder_room=20,
        backend=gpu_like(EagerCapturer()),
    )
    runner.prepare()
    order = [key for key, _ in groupby(done)]
    assert order == ["warm_up encode", "capture encode", "warm_up step", "capture step"]
    for name in ("encode", "step"):
        assert done.count(f"warm_up {name}") == done.count(f"capture {name}") > 1


def test_searches_start_with_one_copy_from_the_host(model: Florence2Model) -> None:
    """Any number of searches start with one copy from the host, since each copy on a GPU waits for all sent
    steps.

    Each search starts as it would alone, whatever was in its slot before.
    """

    class Copies(TorchDispatchMode):
        """Record the copies from the host."""

        seen: list[str] = []  # noqa: RUF012  (only this test uses it)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:  # torch chose the names
            if any(word in str(func) for word in ("lift", "scalar_tensor")):
                self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    dice = random.Random(0)
    runner, alone = Runner(model, 6), Runner(model, 6)
    for _ in range(10):
        rows = dice.sample(range(18), 14)
        asked = [
            (Slot(slot, tuple(rows.pop() for _ in range(beams))), request(slot, beams=beams).options)
            for slot, beams in zip(dice.sample(range(6), 3), (1, 3, 8), strict=True)
        ]
        starts = starts_of(asked)
        with Copies() as copies:
            runner.state.start(starts)
            runner.caches.wipe(1, (0, 3, 4))
        assert copies.seen == []
        for slot, options in asked:
            alone.state.start(starts_of([(slot, options)]))
            state, index = runner.state, slot.index
            assert state.status[index] == RUNNING
            assert state.generated[index] == state.finished_count[index] == 0
            assert state.beams[index] == options.num_beams == len(slot.rows)
            assert state.length_penalty[index] == options.length_penalty
            assert state.beam_indirection[index, : len(slot.rows), 0].tolist() == list(slot.rows)
            assert state.sequences[index, :, 0].eq(runner.rules.start_id).all()
            assert state.totals[index].isfinite().sum() == options.num_beams
        assert torch.equal(runner.state.totals, alone.state.totals)
        for state in (runner.state, alone.state):  # as requests leave their slots
            state.totals.fill_(-3.0)
            state.generated.fill_(7)


def test_each_chunk_runs_within_a_context_of_its_own() -> None:
    """Each chunk runs in its own context, and closing the generator closes the chunks."""
    events: list[str] = []

    def chunks() -> Chunks[int]:
        try:
            for number in range(2):
                events.append(f"chunk {number}")
                yield
            return 7
        finally:
            events.append("closed")

    @contextmanager
    def context() -> Iterator[None]:
        yield
        events.append("pause")

    assert run_to_end(within(chunks(), context)) == 7
    assert events == ["chunk 0", "pause", "chunk 1", "pause", "closed", "pause"]
    for begun in (within(chunks(), context), yielding(chunks(), 3)):
        events.clear()
        next(begun)
        begun.close()
        assert [each for each in events if each != "pause"] == ["chunk 0", "closed"]
