"""Encodes on a stream of their own: no step waits for one, and answers stay the same."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from crowds import crowd, engine, ids_alone
from fake_runner import FakeRunner, config, request
from goldens import load_float32
from shared_pool import SharedPool
from tiny import make_native
from torch import Tensor
from two_views import TwoViews
from waiting import PATIENCE_S, wait_until

from florence.engine.config import EngineConfig
from florence.engine.device import backend as backends
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.capture.graphs import CudaGraphCapturer
from florence.engine.device.encode.stream import CudaEncodeStream, EncodeStream
from florence.engine.device.memory import DeviceMemory
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.observer import Observer
from florence.engine.sequence import SequenceState, Wait
from florence.engine.slots import SlotAllocator
from florence.errors import EngineError
from florence.model.caches import Caches
from florence.model.florence2 import Florence2Model
from florence.runtime.futures import generate

GPU, STEP_S, PICTURE_S = torch.device("cuda:0"), 0.004, 0.03


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    """A tiny model."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


def runner_of(
    model: Florence2Model, stream: EncodeStream, picture_size: tuple[int, int] | None = (64, 64)
) -> Runner:
    """A runner with this stream for encodes; without a picture size encodes run uncaptured."""
    backend = Backend(
        capturer=SharedPool(), delayed_readback=True, free_host_reads=False, encode_stream=stream
    )
    return Runner(
        model,
        8,
        backend=backend,
        picture_tokens=5,
        picture_size=picture_size,
        encode_batch=3,
        decoder_room=40,
    )


@pytest.mark.slow
def test_requests_that_join_and_are_cancelled_beside_steps_change_no_answer(model: Florence2Model) -> None:
    """Joining and cancelled requests, with steps during encodes, change no answer, even after a reset during
    an encode."""
    stream, dice = TwoViews(), random.Random(0)
    runner = runner_of(model, stream)
    asked = crowd(24)
    expected = [ids_alone(runner, each) for each in asked]
    for _ in range(2):
        with engine(runner, encode_budget_ms=1000) as running:
            futures = [generate(running, each) for each in asked]
            left = dice.sample(futures, 5)
            for future in left:
                wait_until(lambda future=future: running.snapshot().encoding or future.done())
                future.cancel()
            for future, ids in zip(futures, expected, strict=True):
                if future not in left:
                    assert future.result(PATIENCE_S).token_ids == ids
        runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
        begun = runner.encode_parts([SequenceState(each) for each in asked[:3]])
        next(begun)
        runner.reset()
    assert stream.asked > 10


@pytest.mark.slow
@pytest.mark.parametrize("picture_size", [(64, 64), None], ids=["captured", "plain"])
def test_an_encode_that_is_closed_while_the_device_is_at_it_frees_its_slots(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch, picture_size: tuple[int, int] | None
) -> None:
    """An encode closed after any part frees its slots, and its requests are decoded correctly when they come
    again.

    The closed encode may still write NaN to the caches. A reset waits for it.
    """
    stream = TwoViews(polls=2)
    runner = runner_of(model, stream, picture_size)
    runner.prepare()
    asked = crowd(4)[1:]  # with prompts that do not fill their slots
    parts = sum(1 for _ in runner.encode_parts([SequenceState(each) for each in asked]))
    assert parts >= 3  # after the tower, and after two polls
    waits = stream.waits
    runner.reset()
    assert stream.waits == waits + 1
    write = Caches.write_cross_kv

    def bad(self: Caches, slots: Tensor, cross: Any) -> None:
        write(self, slots, cross)
        self.cross_values[:, slots] = torch.nan

    monkeypatch.setattr(Caches, "write_cross_kv", bad)
    for stop in range(1, 1 + parts):
        runner.features.clear()
        begun = runner.encode_parts([SequenceState(each) for each in asked])
        for _ in range(stop):
            next(begun)
        begun.close()
        runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    monkeypatch.undo()
    left, answers = runner.encode(asked), dict[SequenceState, Hypothesis]()
    while len(answers) < len(left):
        for each, outcome in runner.step([each for each in left if each not in answers]):
            assert isinstance(outcome, Hypothesis)
            answers[each] = outcome
    for each in left:
        assert tuple(answers[each].token_ids) == ids_alone(runner, each.request)


class Device(FakeRunner):
    """A fake device whose encodes take time beside steps. `gaps`: seconds between steps that share a request.
    `waited`: the number of decoding requests whenever the host waited for an encode."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotAllocator(64, 64)
        self.latest: tuple[float, set[SequenceState]] = 0.0, set()
        self.decoding: set[SequenceState] = set()
        self.gaps: list[float] = []
        self.waited: list[int] = []
        self.steps_of: dict[SequenceState, int] = {}

    def encode_parts(self, sequences: Sequence[SequenceState]) -> Generator[Wait | None, None, int]:
        assert self.gate.wait(PATIENCE_S)
        for number, share in enumerate((0.9, 0.1)):
            if number == 0 and sequences[0].request.prompt_ids[1] == 13:
                raise RuntimeError("a kernel failed")
            done = self.clock.now + share * PICTURE_S * len(sequences)

            def wait(done: float = done) -> None:
                self.waited.append(len(self.decoding))
                self.clock.now = max(self.clock.now, done)

            while self.clock.now < done:
                yield wait
        for sequence in sequences:
            sequence.place(self.slots.take(1), 5, 10)
        self.decoding |= set(sequences)
        return len(sequences)

    def step(
        self, sequences: Sequence[SequenceState]
    ) -> list[tuple[SequenceState, Hypothesis | EngineError]]:
        self.clock.now += STEP_S
        before, some = self.latest
        if some & set(sequences):
            self.gaps.append(self.clock.now - before)
        self.latest = self.clock.now, set(sequences)
        for sequence in sequences:
            self.steps_of[sequence] = self.steps_of.get(sequence, 0) + 1
        ended = [each for each in sequences if self.steps_of[each] == 5 + each.request.prompt_ids[1] % 20]
        for sequence in ended:
            self.drop(sequence)
        return [(sequence, self.outcome(1)) for sequence in ended]

    def drop(self, sequence: SequenceState) -> None:
        self.decoding.discard(sequence)
        super().drop(sequence)


class Encodes(Observer):
    """An observer that records the seconds and the number of requests of each encode."""

    def __init__(self) -> None:
        self.seconds: list[tuple[int, float]] = []

    def encoded(self, requests: int, pictures: int, seconds: float) -> None:
        self.seconds.append((requests, seconds))


def test_no_step_waits_for_an_encode() -> None:
    """No step waits for an encode, and the host waits for one only when it has no other work.

    An encode's whole time is reported.
    """
    device, told = Device(), Encodes()
    limits = config(max_batch_size=64, max_encode_batch=16, encode_budget_ms=500.0)
    running = Engine(device, limits, clock=device.clock, observer=told)
    device.gate.clear()  # all requests come before the device goes on
    futures = [generate(running, request(number % 7)) for number in range(150)]
    device.gate.set()
    for future in futures:
        future.result(PATIENCE_S)
    running.close()
    assert len(device.gaps) > 50
    assert max(device.gaps) == pytest.approx(STEP_S)
    assert device.waited
    assert set(device.waited) == {0}
    for requests, seconds in told.seconds:
        assert requests * PICTURE_S <= seconds + 1e-9 <= requests * PICTURE_S + 3 * STEP_S


def test_an_encode_that_fails_beside_steps_fails_its_bad_request_alone() -> None:
    """A failed encode fails only its bad request, as on one stream."""
    device = Device()
    running = Engine(device, config(max_batch_size=8, max_encode_batch=4), clock=device.clock)
    futures = [generate(running, request(number)) for number in (13, 1, 2, 3)]
    assert [future.result(PATIENCE_S).token_ids for future in futures[1:]] == [(2, 1, 2)] * 3
    with pytest.raises(EngineError):
        futures[0].result(PATIENCE_S)
    running.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A simulated CUDA device that records its calls in order."""
    asked: list[str] = []

    class Stream:
        """A stream that records its calls."""

        def __init__(self, device: torch.device, priority: int = 0) -> None:
            self.name = f"stream {sum(each.startswith('new') for each in asked)}"
            asked.append(f"new {self.name}, priority {priority}")

        def wait_stream(self, other: Any) -> None:
            asked.append(f"{self.name} waits for {other.name}")

    class Event:
        """An event that never completes and records its calls."""

        def record(self, stream: Stream) -> None:
            asked.append(f"event on {stream.name}")

        def query(self) -> bool:
            asked.append("query")
            return False

        def synchronize(self) -> None:
            asked.append("synchronize")

    @contextmanager
    def current(stream: Stream) -> Iterator[None]:
        asked.append(f"enter {stream.name}")
        yield
        asked.append("leave")

    pools = iter(range(10))
    fakes = {
        "Stream": Stream,
        "Event": Event,
        "stream": current,
        "current_stream": lambda _: SimpleNamespace(name="the steps'"),
        "graph_pool_handle": lambda: next(pools),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(backends, "CudaMemory", lambda _: DeviceMemory())
    monkeypatch.setattr(backends, "find_kernels", lambda *_: None)
    return asked


def test_work_on_the_second_stream_follows_the_steps(calls: list[str]) -> None:
    """Work on the second stream follows the steps and ends with an event, even if it fails; the steps' stream
    never waits."""
    stream = CudaEncodeStream(GPU)
    calls.clear()
    with pytest.raises(ZeroDivisionError), stream.sending():
        calls.append(f"work {1 / 0}")
    sent = ["stream 0 waits for the steps'", "enter stream 0", "event on stream 0"]
    assert calls == sent
    assert not stream.done()
    stream.wait()
    assert calls == [*sent, "query", "synchronize"]


@pytest.mark.usefixtures("calls")
def test_graphs_of_encodes_have_a_pool_of_their_own_and_steps_come_first() -> None:
    """With `on`, encodes have their own memory pool and a lower priority; with `off`, everything uses one
    stream."""
    backend = Backend.for_device(GPU, torch.bfloat16, 64, config=EngineConfig(encode_stream="on"))
    stream = backend.encode_stream
    assert isinstance(backend.capturer, CudaGraphCapturer)
    assert isinstance(stream.capturer, CudaGraphCapturer)
    assert stream.beside
    assert backend.capturer.pool != stream.capturer.pool
    assert backend.capturer.priority < stream.capturer.priority
    plain = Backend.for_device(GPU, torch.bfloat16, 64, config=EngineConfig(encode_stream="off"))
    assert (plain.encode_stream.beside, plain.encode_stream.capturer) == (False, None)


def test_buffers_of_both_streams_are_held(model: Florence2Model) -> None:
    """The caches and the inputs of captured encodes are held while an encode may use them, and only encodes
    use their memory pool."""

    class Holding(TwoViews):
        """A stream that records the held buffers."""

        held: list[Tensor]

        def hold(self, buffers: Any) -> None:
            self.held = [*getattr(self, "held", []), *buffers]
            super().hold(buffers)

    stream = Holding()
    runner = runner_of(model, stream)
    runner.prepare()
    held = {buffer.data_ptr() for buffer in stream.held}
    encodes: Any = runner.buffers.encodes
    inputs = [buffer for work in encodes.encoders.values() for buffer in work.buffers]
    for buffer in (*runner.caches.buffers, encodes.pixels, *inputs):
        assert buffer.data_ptr() in held
    works = [*encodes.towers.values(), *encodes.encoders.values()]
    assert isinstance(stream.capturer, SharedPool)
    assert len(stream.capturer.all) == len(works)
