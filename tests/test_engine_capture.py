"""Work captured for a GPU is legal in a CUDA graph: it reads no value on the host, uses no host tensor, and
no shape depends on values.

Tested without a GPU on fake tensors, which have shapes, dtypes and a device but no memory. An operation that
needs one of their values raises an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from absent_gpu import AbsentMemory, Capture, OnTheDevice, move
from tiny import make_native

# PyTorch offers fake tensors and dispatch modes in private modules only.
from torch._subclasses.fake_tensor import FakeTensorMode

from florence.checkpoint.config import read_config
from florence.engine.adapters import EngineAdapter
from florence.engine.device.backend import Backend
from florence.engine.device.beams.search_state import starts_of
from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.graphs import CapturedWork
from florence.engine.device.encode.encodes import BucketEncodes
from florence.engine.device.readback import best_of
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.engine.slots import Slot
from florence.model.adapters.lowrank import Factors, StackedAdapters, linear_layers
from florence.model.chunks import run_to_end
from florence.model.config import ModelConfig
from florence.model.florence2 import Florence2Model
from florence.model.vision import Normalize

PICTURE_TOKENS, SIDE = 5, 64


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A tiny model's configuration."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    make_native(directory, text_config={"decoder_layers": 1}, vision_config={"depths": [1] * 4})
    return read_config(directory)


@pytest.fixture(
    params=[(torch.bfloat16, 0), (torch.float32, 2)],
    ids=["bfloat16", "float32, adapters"],
)
def runner(config: ModelConfig, request: pytest.FixtureRequest) -> Iterator[Runner]:
    """A runner on a simulated GPU whose readbacks never arrive; with adapters, on every layer."""
    dtype, adapters = request.param
    with torch.device("meta"):
        model = Florence2Model(config, Normalize([0.5] * 3, [0.25] * 3, 1 / 255))
    model.language.tied_head, model.language.has_logits_bias = True, False
    with FakeTensorMode(), torch.no_grad():
        move(model, dtype)
        if adapters:
            model.adapters = StackedAdapters(model, adapters)
            model.adapters.reserve([adapter_of(model, 0).layers])
        backend = Backend(
            memory=AbsentMemory(),
            capturer=Capture(),
            delayed_readback=True,
            free_host_reads=False,
            lazy_pages=False,
        )
        runner = Runner(model, 4, backend=backend, picture_tokens=PICTURE_TOKENS, decoder_room=40)
        with torch.inference_mode():
            yield runner


def adapter_of(model: Florence2Model, number: int) -> EngineAdapter:
    """An adapter with factors for every layer."""
    layers = {
        name: Factors(torch.zeros(3, layer.in_features), torch.zeros(layer.out_features, 3))
        for name, layer in linear_layers(model).items()
    }
    return EngineAdapter(str(number), layers, str(number).encode())


def asked(beams: Sequence[int], adapters: Sequence[EngineAdapter | None] = (None,)) -> list[Request]:
    """Requests with these numbers of beams."""
    return [
        Request(
            np.full((SIDE, SIDE, 3), number, np.uint8),
            (0, *range(10, 14 + 9 * number), 2),
            GenerationOptions(count, 20, 0, 3, True, 1.0),
            adapter=adapters[number % len(adapters)],
        )
        for number, count in enumerate(beams)
    ]


def encode(runner: Runner, beams: Sequence[int]) -> list[SequenceState]:
    """Encode requests without waiting for the simulated device."""
    adapters: list[EngineAdapter | None] = [None]
    if runner.model.adapters is not None:
        adapters += [adapter_of(runner.model, number) for number in range(runner.model.adapters.slots)]
    sequences = [SequenceState(request) for request in asked(beams, adapters)]
    run_to_end(runner.encode_chunks(sequences))
    return sequences


def captured(runner: Runner) -> Capture:
    """The runner's capturer."""
    assert isinstance(runner.backend.capturer, Capture)
    return runner.backend.capturer


@pytest.mark.slow
def test_steps_can_be_captured(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """All shapes of steps are captured at the start, and requests with one, three and eight beams together
    need no other.

    Warm-ups are left out.
    """
    monkeypatch.setattr(CapturedWork, "warm_up", lambda _: None)
    steps = runner.buffers.steps
    assert isinstance(steps, BucketSteps)
    steps.prepare()
    prepared = captured(runner).captured
    assert prepared == len(steps.captured) == len(runner.buckets().steps)
    left = encode(runner, [1, 3, 8])
    for _ in range(3):
        runner.buffers.latest = None
        runner.step(left)
    assert captured(runner).captured == prepared
    assert {"aten.scatter_reduce_.two", "aten.topk.default"} <= captured(runner).operations


@pytest.mark.slow
def test_encodes_can_be_captured(runner: Runner) -> None:
    """Tower and encoder are captured for all numbers of requests and prompt lengths, and encodes need no
    other shape."""
    encodes, buckets = runner.buffers.encodes, runner.buckets()
    assert isinstance(encodes, BucketEncodes)
    encodes.prepare(SIDE, SIDE)
    assert captured(runner).captured == len(buckets.pictures) * (1 + len(buckets.prompts)) == 9
    for count in (1, 3):
        for _ in range(3):
            runner.features.clear()
            for sequence in encode(runner, [3] * count):
                runner.drop(sequence)
        assert captured(runner).captured == 9
    assert "aten.convolution.default" in captured(runner).operations


def test_work_between_steps_never_waits(runner: Runner) -> None:
    """The start of a search, clearing caches and the choice of the best hypotheses never wait for
    the device."""
    slots = torch.zeros(3, dtype=torch.int64, device="cuda")
    starts = runner.backend.memory.upload(starts_of([(Slot(1, (0, 3, 4)), asked([3])[0].options)] * 2))
    with torch.inference_mode(False), OnTheDevice():
        runner.state.start(starts)
        runner.caches.wipe(1, (0, 3, 4))
        found = best_of(runner.state, slots)
    assert found.dtype is torch.float64
    assert found.shape == (3, 2 + 2 * (runner.sizes.decoder_room + 1))


@pytest.mark.parametrize(
    "work",
    [
        lambda values: values[values > 0],
        lambda values: values.sum().item(),
        lambda values: values + torch.ones(3),
        lambda values: values[torch.tensor([0, 1])],
        lambda values: values.repeat_interleave(torch.tensor([1, 2, 3], device="cuda")),
        lambda values: bool(values.any()),
        lambda values: torch.tensor([1.0], device="cuda"),
    ],
)
def test_work_that_no_graph_could_hold_is_found(work: Any) -> None:
    """The check finds work that a graph can't hold."""
    with FakeTensorMode():
        values = torch.zeros(3, device="cuda")
        with pytest.raises((AssertionError, RuntimeError)):
            Capture().capture(lambda: [work(values)])
