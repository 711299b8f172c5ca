"""The trial at the start: the quicker way to encode is chosen, unless it changes a number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from crowds import crowd, ids_alone
from goldens import load_float32
from shared_pool import SharedPool
from tiny import make_native
from two_views import TwoViews

from florence.engine.config import EngineConfig
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.encode import trial as encode_trial
from florence.engine.device.encode.stream import EncodeStream
from florence.engine.device.encode.trial import EncodeTrial
from florence.engine.device.runner import Runner
from florence.engine.device.steps import StepContext
from florence.engine.encode_policy import MOST_REPEATS, MOST_STEPS, TRIAL_S, Decision, setting_of
from florence.errors import EngineError
from florence.model.caches import Caches
from florence.model.florence2 import Florence2Model

STEP_S, ENCODE_S, BUDGET_S = 0.001, 0.02, 0.25


@dataclass
class Device:
    """A clock that work advances: a step by `step_s`, an encode by `encode_s`.

    A concurrent encode runs while steps run and slows them by the factor `slower`. `steps`, `encodes`: the
    numbers sent so far.
    """

    now: float = 0.0
    step_s: float = STEP_S
    encode_s: float = ENCODE_S
    slower: float = 1.2
    beside: bool = False
    left_s: float = 0.0
    steps: int = 0
    encodes: int = 0

    def step(self) -> None:
        """Advance the clock by a step, and a concurrent encode with it."""
        self.steps += 1
        beside = min(self.left_s, self.step_s)
        self.left_s -= beside
        self.now += self.step_s + beside * (self.slower - 1)

    def encode(self) -> None:
        """Send an encode, which takes the clock's time now or beside steps."""
        self.encodes += 1
        if self.beside:
            self.left_s = self.encode_s
        else:
            self.now += self.encode_s

    def wait(self) -> None:
        """Advance the clock to the end of the encode."""
        self.now, self.left_s = self.now + self.left_s, 0.0


class Beside(TwoViews):
    """A second stream whose encodes take the device's time."""

    def __init__(self, device: Device) -> None:
        super().__init__(polls=0)
        self.device = device

    @contextmanager
    def sending(self) -> Iterator[None]:
        self.device.beside = True
        with super().sending():
            yield
        self.device.beside = False

    def done(self) -> bool:
        return not self.device.left_s and super().done()

    def wait(self) -> None:
        super().wait()
        self.device.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    """A tiny model."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


def runner_of(model: Florence2Model, stream: EncodeStream, slots: int = 8, room: int = 40) -> Runner:
    """A runner with this stream for encodes."""
    backend = Backend(
        capturer=SharedPool(),
        delayed_readback=True,
        free_host_reads=False,
        encode_stream=stream,
        encode_budget_s=BUDGET_S,
    )
    return Runner(
        model,
        slots,
        backend=backend,
        picture_tokens=5,
        picture_size=(64, 64),
        encode_batch=3,
        decoder_room=room,
    )


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A clock that steps and encodes advance, and by which trials are timed."""
    made = Device()
    step, write = StepContext.step, Caches.write_cross_kv

    def timed_step(*arguments: Any) -> None:
        made.step()
        step(*arguments)

    def timed_write(*arguments: Any) -> None:
        made.encode()
        write(*arguments)

    monkeypatch.setattr(StepContext, "step", timed_step)
    monkeypatch.setattr(Caches, "write_cross_kv", timed_write)

    class Timed(EncodeTrial):
        """A trial with the device's clock."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, clock=lambda: made.now)

    monkeypatch.setattr(encode_trial, "EncodeTrial", Timed)
    return made


def prepared(runner: Runner) -> Decision:
    """Prepare the runner and return its decision."""
    runner.prepare()
    assert runner.decision is not None
    return runner.decision


def answers_are_right(runner: Runner) -> None:
    """Check that no request of a trial is left, and that requests get the answers that they get alone."""
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    assert sum(int(buffer.count_nonzero()) for buffer in runner.caches.buffers) == 0
    assert runner.features.nbytes == 0
    asked = crowd(3)
    left, got = runner.encode(asked), dict[Any, Hypothesis]()
    while len(got) < len(left):
        for each, outcome in runner.step([each for each in left if each not in got]):
            assert isinstance(outcome, Hypothesis)
            got[each] = outcome
    for each in left:
        assert tuple(got[each].token_ids) == ids_alone(runner, each.request)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "runs_beside", "why"),
    [
        ({}, True, "beside each other"),
        ({"slower": 1.99}, False, "not quicker"),
        ({"slower": 4.0}, False, "not quicker"),
        ({"slower": 1.1, "step_s": 0.26, "encode_s": 2.0}, False, "encode budget"),
    ],
    ids=["quicker", "as quick", "slower", "over the budget"],
)
def test_the_quicker_way_is_taken(
    model: Florence2Model, device: Device, change: dict[str, float], runs_beside: bool, why: str
) -> None:
    """The quicker way is chosen; answers are right afterwards, and after a reset, which does not repeat the
    trial."""
    for name, value in change.items():
        setattr(device, name, value)
    stream = Beside(device)
    runner = runner_of(model, stream)
    assert setting_of(runner.decision) == "auto"
    decision = prepared(runner)
    assert decision.runs_beside == runs_beside
    assert why in decision.why
    assert (runner.encode_stream is stream) == runs_beside
    answers_are_right(runner)
    runner.reset()
    assert runner.decision is decision
    answers_are_right(runner)


@pytest.mark.slow
def test_a_trial_is_bounded_in_work_and_in_time(model: Florence2Model, device: Device) -> None:
    """A trial has a limited number of steps and encodes, and only two repeats if they are slow."""
    runner = runner_of(model, Beside(device))
    runner.prepare()
    for encode_s, repeats in ((1e-6, MOST_REPEATS), (ENCODE_S, MOST_REPEATS), (0.5, 2), (2.0, 2)):
        device.encode_s, device.steps, device.encodes, started = encode_s, 0, 0, device.now
        decision = EncodeTrial(runner, (64, 64), 3, BUDGET_S, lambda: device.now).decide()
        assert decision.between is not None
        assert device.steps <= 2 * repeats * MOST_STEPS
        assert device.encodes <= 1 + runner.sizes.slots + 2 * repeats
        if repeats == MOST_REPEATS:
            assert device.now - started < TRIAL_S
        runner.buffers.clear()


@pytest.mark.slow
def test_a_way_that_changes_a_number_is_not_taken(
    model: Florence2Model, device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Concurrent encodes are not chosen if one bit of a cache or of a step's result differs."""
    caplog.set_level("INFO")
    write, step = Caches.write_cross_kv, StepContext.step

    def bad_write(self: Caches, slots: Any, cross: Any) -> None:
        write(self, slots, cross)
        if device.beside:
            word = self.cross_values[-1, slots[-1], 0, 0, :1].view(torch.int32)
            self.cross_values[-1, slots[-1], 0, 0, :1] = (word ^ 1).view(torch.float32)

    def bad_step(self: StepContext, *arguments: Any) -> None:
        step(self, *arguments)
        if device.left_s:
            self.state.totals[-1].add_(1e-3)
            self.state.totals[:4].mul_(1 + 1e-6)

    for kind, name, bad in ((Caches, "write_cross_kv", bad_write), (StepContext, "step", bad_step)):
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, bad)
            runner = runner_of(model, Beside(device))
            decision = prepared(runner)
        assert not decision.runs_beside
        assert "not compute the same numbers" in decision.why
        answers_are_right(runner)
    assert caplog.text.count("encodes run between decode steps: both ways do not") == 2


@pytest.mark.slow
def test_a_trial_that_fails_decides_for_one_stream(
    model: Florence2Model, device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed trial, such as one without enough memory, is one log line, and requests are served on one
    stream."""
    caplog.set_level("INFO")
    step, errors = StepContext.step, [torch.OutOfMemoryError("full"), RuntimeError("launch failed")]

    for error in errors:

        def failing(*arguments: Any, error: Exception = error) -> None:
            if device.left_s:
                raise error
            step(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(StepContext, "step", failing)
            runner = runner_of(model, Beside(device))
            decision = prepared(runner)
        assert decision == Decision(False, f"the trial failed: {error}")
        device.left_s = 0.0
        answers_are_right(runner)
    assert caplog.text.count("the trial failed") == len(errors)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.slow
def test_a_device_that_a_trial_breaks_is_told_with_the_setting(
    model: Florence2Model, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a trial breaks the device, the error names the setting with which the next process can leave the
    trial out."""
    broken = RuntimeError("an illegal memory access was encountered")
    stream = Beside(device)

    def fail(*_: Any) -> None:
        raise broken

    for name in ("done", "wait"):
        monkeypatch.setattr(stream, name, fail)
    with pytest.raises(EngineError, match="FLORENCE_ENCODE_STREAM=off") as raised:
        runner_of(model, stream).prepare()
    assert raised.value.__cause__ is broken


@pytest.mark.parametrize(("slots", "room"), [(1, 40), (8, 3)])
def test_an_engine_that_is_too_small_tries_nothing(model: Florence2Model, slots: int, room: int) -> None:
    """An engine too small for a step beside an encode has no trial."""
    runner = runner_of(model, TwoViews(), slots, room)
    assert prepared(runner) == Decision(False, "too few requests fit into a step and an encode")
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)


def test_a_set_choice_is_not_tried(model: Florence2Model) -> None:
    """The settings `on` and `off` need no trial, and a CPU has only one way; `auto` is the default."""
    assert EngineConfig().encode_stream == EngineConfig.for_device("cuda").encode_stream == "auto"
    for choice in ("auto", "on", "off"):
        config = EngineConfig(encode_stream=choice)  # type: ignore[arg-type]
        backend = Backend.for_device(torch.device("cpu"), torch.float32, 16, config=config)
        assert setting_of(Runner(model, 2, backend=backend, decoder_room=4).decision) == "off"
    for stream, setting in ((TwoViews(), "on"), (EncodeStream(), "off")):
        backend = Backend(capturer=SharedPool(), encode_stream=stream)
        runner = Runner(model, 2, backend=backend, picture_tokens=5, decoder_room=4)
        assert setting_of(runner.decision) == setting
        assert runner.encode_stream is stream
