"""A decode step by the Triton kernels on tensors without memory: the launched kernels, the number of
shapes, and that a graph can hold it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

pytest.importorskip("triton", reason="PyTorch's builds for CPUs have no triton")

import torch
from absent_gpu import AbsentMemory, Capture, move
from kernel_count import KernelCount
from tiny import make_native
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # the path in PyTorch's documentation

from florence.checkpoint.config import read_config
from florence.engine.device.backend import Backend
from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.buckets import Buckets, StepKey
from florence.engine.device.capture.graphs import CapturedWork, Replay, Work
from florence.engine.device.cuda import search as cuda_search
from florence.engine.device.cuda.kernels import STEP_KERNELS
from florence.engine.device.runner import Runner
from florence.engine.device.steps import grouped_batch, shape_of
from florence.engine.sequence import StepSequence
from florence.engine.slots import Slot
from florence.model.cuda.attention import CUDA
from florence.model.florence2 import Florence2Model
from florence.model.vision import Normalize

LAYERS = 2


class Counting(Capture):
    """Count the kernels of each captured work, and refuse what a graph can't hold."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Counter[str]] = []

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """Capture the work and keep its count."""
        with KernelCount() as counted:
            made = super().capture(work)
        self.counts.append(counted.kernels)
        return made


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[StepKey, Counter[str]]:
    """The kernels of each captured step; the work runs once, in its capture."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    make_native(directory, text_config={"decoder_layers": LAYERS})
    with torch.device("meta"):
        model = Florence2Model(read_config(directory), Normalize([0.5] * 3, [0.25] * 3, 1 / 255))
    model.language.tied_head, model.language.has_logits_bias = True, False
    capturer = Counting()
    backend = Backend(
        CUDA,
        cuda_search.advance,
        memory=AbsentMemory(),
        capturer=capturer,
        delayed_readback=True,
        free_host_reads=False,
        lazy_pages=False,
    )
    with (
        FakeTensorMode(),
        torch.inference_mode(),
        patch.object(CapturedWork, "warm_up", lambda _: None),
    ):
        move(model, torch.bfloat16)
        model.lay_out_for_gpu()
        runner = Runner(
            model,
            64,
            backend=backend,
            picture_tokens=5,
            encode_batch=1,
            decoder_room=60,
            ordered=range(9, 99),
        )
        steps = runner.buffers.steps
        assert isinstance(steps, BucketSteps)
        steps.prepare()
        return dict(zip(steps.captured, capturer.counts, strict=True))


@pytest.mark.slow
def test_a_step_launches_few_kernels(counts: dict[StepKey, Counter[str]]) -> None:
    """A step launches eleven kernels a layer and a fixed number for all searches, and each kernel of the
    table."""
    names = {name.removeprefix("florence::") for name in (kernel.name for kernel in STEP_KERNELS)}
    for key, count in counts.items():
        if key.shape.sampled:  # candidates by PyTorch's operations
            assert count["choose"] == 1 > count["scan"]
            continue
        assert count.total() <= 11 * LAYERS + 11, key
        assert {name: count[name] for name in names} == {
            "self_attention": LAYERS,
            "cross_attention": LAYERS,
            "add_norm": 3 * LAYERS,
            "embed": 1,
            "gelu_linear": LAYERS,
            "window_sums": 1,
            "scan": 1,
            "merge": 1,
            "choose": 1,
        }


@pytest.mark.slow
def test_lengths_are_no_shapes(counts: dict[StepKey, Counter[str]]) -> None:
    """Sequence lengths add no graphs: steps of any requests with one to eight beams need few."""
    plain = [key for key in counts if not key.shape.sampled]
    assert len(plain) == 15
    assert len(counts) == 15 + 6
    assert {key.shape.beams for key in counts} == {1, 3, 8}
    buckets = Buckets.of(
        slots=64,
        rows=192,
        beams=3,
        room=1024,
        picture_tokens=577,
        encoder_room=1088,
        pictures=16,
        grouped=True,
    )
    dice = random.Random(0)
    for _ in range(200):
        sequences = crowd(dice, dice.randint(1, 64))
        shape = shape_of(sequences, 1025)
        key = buckets.step(StepKey(len(sequences), len(sequences) * shape.beams, shape))
        assert key.rows == key.slots * key.shape.beams
        assert key.shape.beams == next(size for size in (1, 3, 8) if size >= shape.beams)
        assert key.slots < 2 * max(8, len(sequences))


def crowd(dice: random.Random, requests: int) -> list[StepSequence]:
    """Random sequences of this many requests."""
    rows = iter(dice.sample(range(1000), 8 * requests))
    return [
        StepSequence(
            slot=Slot(slot, tuple(next(rows) for _ in range(dice.randint(1, 8)))),
            encoder_length=dice.randint(578, 1088),
            steps=dice.randint(0, 1023),
        )
        for slot in dice.sample(range(100), requests)
    ]


def test_a_grouped_batch_lists_the_requests_in_use() -> None:
    """Each request has the same number of rows, its own first; padding has no beams, and names slots in
    use."""
    sequences = crowd(random.Random(1), 5)
    batch = grouped_batch(sequences, 8, 8)
    assert batch.slots[:5].tolist() == [sequence.slot.index for sequence in sequences]
    assert batch.beams.tolist() == [*(len(sequence.slot.rows) for sequence in sequences), 0, 0, 0]
    assert batch.encoder_lengths[:5].tolist() == [sequence.encoder_length for sequence in sequences]
    for sequence, rows in zip(sequences, batch.rows.view(8, 8), strict=False):
        own = sequence.slot.rows
        assert tuple(rows[: len(own)].tolist()) == own
        assert set(rows.tolist()) == set(own)
    assert torch.equal(batch.request_of, torch.arange(64) // 8)
    assert torch.equal(batch.beam_of, torch.arange(64) % 8)
    assert torch.equal(batch.rows_of, torch.arange(64).view(8, 8))
    assert torch.equal(batch.is_beam.sum(1), batch.beams.long())
    assert set(batch.slots[5:].tolist()) <= set(batch.slots[:5].tolist())
