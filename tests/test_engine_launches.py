"""Upper limits for the kernels that a GPU would launch for a step and an encode, counted on fake tensors.

The numbers of layers are those of Florence-2-large; sizes are small, but each stage has several windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from absent_gpu import AbsentMemory, move
from kernel_count import KernelCount
from tiny import make_native
from torch import Tensor

# PyTorch offers fake tensors and dispatch modes in private modules only.
from torch._subclasses.fake_tensor import FakeTensorMode

from florence.checkpoint.config import read_config
from florence.engine.device.backend import Backend
from florence.engine.device.beams.search_state import StepShape
from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.buckets import StepKey
from florence.engine.device.capture.graphs import Replay, Work
from florence.engine.device.encode.encodes import BucketEncodes
from florence.engine.device.runner import Runner
from florence.engine.device.steps import dense_batch
from florence.engine.sequence import StepSequence
from florence.engine.slots import Slot
from florence.model.attention import DENSE_ON_GPU
from florence.model.florence2 import Florence2Model
from florence.model.vision import Normalize

LAYERS = {"decoder_layers": 12, "encoder_layers": 12}


class Counting:
    """A capturer that counts the kernels of each captured work, in order."""

    def __init__(self) -> None:
        self.counts: list[Counter[str]] = []

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """Run the work once and record its kernels."""
        with torch.inference_mode(False), torch.no_grad(), KernelCount() as counted:
            results = work()
        self.counts.append(counted.kernels)
        return lambda: None, results

    def reset(self) -> None:
        """Do nothing."""
        pass


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """The kernels of a step of three beams, of one that includes single-beam requests, and of both parts of
    an encode."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    make_native(directory, text_config=LAYERS, vision_config={"depths": [1, 1, 9, 1]})
    config = read_config(directory)
    with torch.device("meta"):
        model = Florence2Model(config, Normalize([0.5] * 3, [0.25] * 3, 1 / 255))
    model.language.tied_head, model.language.has_logits_bias = True, False
    with FakeTensorMode(), torch.no_grad():
        move(model, torch.bfloat16)
        model.lay_out_for_gpu()
        capturer = Counting()
        backend = Backend(
            DENSE_ON_GPU,
            memory=AbsentMemory(),
            capturer=capturer,
            delayed_readback=True,
            free_host_reads=False,
            lazy_pages=False,
        )
        runner = Runner(model, 8, backend=backend, picture_tokens=65, encode_batch=1, decoder_room=60)
        steps, encodes = runner.buffers.steps, runner.buffers.encodes
        assert isinstance(steps, BucketSteps)
        assert isinstance(encodes, BucketEncodes)
        for greedy in (False, True):
            shape = StepShape(3, 60, greedy, runner.buckets().steps[0].shape.encoder_length)
            one = StepSequence(slot=Slot(0, (0, 1, 2)), encoder_length=8)
            batch = dense_batch([one], 8, 24, 3).map(backend.memory.upload)
            capturer.capture(partial(steps.step, batch, StepKey(8, 24, shape)))
        encodes.prepare(256, 256)
    return dict(zip(("step", "step with one beam", "tower", "encoder"), capturer.counts, strict=False))


@pytest.mark.slow
def test_a_step_launches_few_kernels(counts: dict[str, Counter[str]]) -> None:
    """A step launches at most 992 kernels.

    Each layer has one product for queries, keys and values; masks are converted once for all; a batch of beam
    searches needs one log-sum-exp.
    """
    step, with_one = counts["step"], counts["step with one beam"]
    assert step.total() <= 992
    assert step["addmm"] == 12 * 6
    assert step["attention"] == 12
    assert step["attention's mask"] == step["masked_fill"] == 0
    assert step["scalar_tensor"] <= 1
    assert step["logsumexp"] == with_one["logsumexp"] / 2
    assert step["topk"] == 2  # one of logits and one of candidates; scores are not computed again


def test_an_encode_launches_few_kernels(counts: dict[str, Counter[str]]) -> None:
    """An encode converts its mask once, and an attention's projections are one product."""
    encoder = counts["encoder"]
    assert encoder["attention"] == 12
    assert encoder["attention's mask"] == 0
    assert encoder["addmm"] == 12 * 4 + 12
    assert encoder.total() <= 164
    assert counts["tower"].total() <= 477
    assert counts["tower"]["lt"] == 0  # only a CPU needs the check for denormal numbers
