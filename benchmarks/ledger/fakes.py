"""The engine's runner on a simulated GPU, which counts the content of its graphs.

Weights and caches are fake tensors of real sizes; only memory and capture are replaced.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from random_models import MEAN, RESCALE, SIDE, STD, native_config, picture_tokens
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from florence.checkpoint.config import read_config
from florence.engine.config import EngineConfig
from florence.engine.device import backend as backends
from florence.engine.device.backend import Backend
from florence.engine.device.capture.graphs import Replay, Work
from florence.engine.device.cuda.find_kernels import (
    load_encode_kernels,
    load_fp8,
    load_kernels,
    load_low_rank,
)
from florence.engine.device.encode.encodes import BucketEncodes, Encodes
from florence.engine.device.memory import DeviceMemory, Download
from florence.engine.device.runner import Runner
from florence.engine.device.steps import StepContext
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.adapters.lowrank import RANK_MULTIPLE, Factors, StackedAdapters, linear_layers
from florence.model.encoding import EncodeBackend
from florence.model.florence2 import Florence2Model
from florence.model.quantized import multiply_in_fp8
from florence.model.vision import Normalize
from ledger.counting import Counting, Ledger
from ledger.own import Calls, StepLoad, own_kernels, rules_of, under_load

DEVICE, DTYPE = torch.device("cuda:0"), torch.bfloat16


class AbsentMemory(DeviceMemory):
    """Memory of the simulated GPU. `uploaded`: bytes sent to it. All downloads are zero: no search ends."""

    def __init__(self) -> None:
        self.uploaded = 0

    def upload(self, values: Tensor) -> Tensor:
        self.uploaded += values.nbytes
        return torch.empty(values.shape, dtype=values.dtype, device=DEVICE)

    def store(self, values: Tensor, buffer: Tensor) -> None:
        if values.device.type == "cpu":
            self.uploaded += values.nbytes
            return
        buffer.copy_(values)

    def download(self, values: Tensor) -> Download:
        zeros = np.zeros(values.shape)  # a host tensor would also be fake
        return lambda: cast("Tensor", zeros)


@dataclass
class AbsentCapturer:
    """A capturer that captures nothing and counts its calls."""

    captured: int = 0

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        self.captured += 1
        return lambda: None, work()

    def reset(self) -> None:
        self.captured = 0


@contextmanager
def decomposed() -> Iterator[None]:
    """Turn inference mode off, in which a composite operation hides the operations that it consists of."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def counted_steps(load: StepLoad) -> Iterator[tuple[Ledger, Calls]]:
    """Count the operations of decode steps under a load, and the calls of the project's own kernels."""
    ledger, calls, step = Ledger(), Calls(), StepContext.step

    def counting(*args: Any, **kwargs: Any) -> None:
        with decomposed(), Counting(ledger, rules_of(own_kernels(), load, calls)):
            step(*args, **kwargs)

    with patch.object(StepContext, "step", counting):
        yield ledger, calls


@dataclass(frozen=True, slots=True)
class Shape:
    """The counted model and engine; `fp8`: for most of an encode. `adapters`: of all language layers."""

    size: str = "large"
    slots: int = 64
    beams: int = 3
    encode_batch: int = 16
    prompt_tokens: int = 12
    fp8: bool = False
    adapters: int = 0


@dataclass(frozen=True, slots=True)
class Encode:
    """An encode of `pictures`. `graphs`: the tower's first; `between`: kernels between them; `uploaded`:
    bytes."""

    pictures: int
    graphs: Sequence[Ledger]
    between: int
    uploaded: int


class FakeEngine:
    """A runner with fake weights, whose encodes and steps are counted in the shapes of graphs, in
    `fakes()`."""

    def __init__(self, shape: Shape, model: Florence2Model | None = None) -> None:
        self.shape = shape
        if model is None:
            model = fake_model(shape.size, fp8=shape.fp8)
            if shape.adapters:
                put_beside(model, shape.adapters)
        self._capturer, self._memory = AbsentCapturer(), AbsentMemory()
        self.runner = Runner(
            model,
            shape.slots,
            backend=replace(gpu_backend(model), memory=self._memory, capturer=self._capturer),
            picture_tokens=picture_tokens(shape.size),
            encode_batch=shape.encode_batch,
        )

    @property
    def captured(self) -> int:
        """Graphs captured so far."""
        return self._capturer.captured

    @property
    def encoder_length(self) -> int:
        """Positions of a request's encoder states."""
        return self.length_of(self.shape)

    @staticmethod
    def length_of(shape: Shape) -> int:
        """`encoder_length` of an engine of this shape."""
        return picture_tokens(shape.size) + shape.prompt_tokens

    def encode(self, pictures: int) -> Encode:
        """Count an encode of different pictures: the content of its graphs, and the kernels between them."""
        load = StepLoad(pictures, self.shape.beams, self.encoder_length, 0)
        encodes: Any = self.runner.buffers.encodes
        longest = min(size for size in encodes.buckets.prompts if size >= self.shape.prompt_tokens)
        tower, tokens = self.tower(pictures, self.runner.backend.encode)
        cross = Ledger()
        ids = on_device(torch.empty(pictures, longest, dtype=torch.int64))
        mask = on_device(torch.empty(pictures, tokens.shape[1] + longest, dtype=torch.bool))
        with decomposed(), Counting(cross, rules_of(own_kernels(), load)):
            slots, adapters = (on_device(torch.empty(pictures, dtype=torch.int64)) for _ in range(2))
            # This private method is the part of an encode that its second graph holds.
            encodes._write_cross_kv(tokens, ids, mask, slots, adapters)
        return Encode(pictures, (tower, cross), *self._between(pictures))

    def encodes(self, sizes: Iterable[int]) -> dict[int, Encode]:
        """`encode` for each number of pictures."""
        return {pictures: self.encode(pictures) for pictures in sizes}

    def tower(self, pictures: int, backend: EncodeBackend) -> tuple[Ledger, Tensor]:
        """Count the tower of `pictures` pictures, computed by `backend`; return also their tokens."""
        load = StepLoad(pictures, self.shape.beams, self.encoder_length, 0)
        side, ledger = SIDE[self.shape.size], Ledger()
        pixels = on_device(torch.empty(pictures, side, side, 3, dtype=torch.uint8))
        with decomposed(), Counting(ledger, rules_of(own_kernels(), load)):
            tokens = self.runner.model.encode_images(pixels, backend)
        return ledger, tokens

    def _between(self, pictures: int) -> tuple[int, int]:
        """Kernels launched, and bytes sent, around the graphs of an encode."""
        engine = FakeEngine(replace(self.shape, encode_batch=pictures), self.runner.model)
        side, between = SIDE[self.shape.size], Ledger()
        with without_work():
            engine.runner.picture_size = (side, side)
            engine.runner.prepare()
            for _ in range(2):  # the first time uses new slots
                between.operations.clear()
                uploaded = engine._memory.uploaded
                with Counting(between):
                    for sequence in engine._encoded(pictures):
                        engine.runner.drop(sequence)
        return between.kernels, engine._memory.uploaded - uploaded

    def steps(self, loads: Iterable[tuple[int, float]]) -> list[Ledger]:
        """Count a decode step for each load: a number of requests, and the mean positions of their beams."""
        wanted, running = list(loads), list[SequenceState]()
        most = max(requests for requests, _ in wanted)
        with without_work():
            while len(running) < most:
                running += self._encoded(min(self.shape.encode_batch, most - len(running)))
        ledgers, known = [], dict[int, tuple[Ledger, Calls]]()
        same_shapes = self.runner.backend.attention.grouped  # for all positions
        for requests, positions in wanted:
            load = StepLoad(requests, self.shape.beams, self.encoder_length, positions)
            if not (same_shapes and requests in known):
                for sequence in running:
                    sequence.steps = int(positions)
                with counted_steps(load) as known[requests]:
                    self.runner.step(running[:requests])
            ledgers.append(under_load(*known[requests], load))
        for sequence in running:
            self.runner.drop(sequence)
        return ledgers

    def _encoded(self, count: int) -> list[SequenceState]:
        """Encode requests with new pictures."""
        self.runner.features.clear()
        side = SIDE[self.shape.size]
        options = GenerationOptions(self.shape.beams, 1024, 1024, 3, True, 1.0)
        prompt = (0, *range(100, 98 + self.shape.prompt_tokens), 2)
        pixels = np.zeros((side, side, 3), np.uint8)
        names = [f"picture {number}".encode() for number in range(count)]
        return self.runner.encode([Request(pixels, prompt, options, digest=name) for name in names])


@contextmanager
def fakes() -> Iterator[None]:
    """Make tensors without memory in this block."""
    with FakeTensorMode(), torch.no_grad():
        yield


def mean_length(length: int) -> float:
    """Mean positions of sequences whose bucket of lengths is `length`: halfway from the bucket below."""
    return length / 2 if length <= 64 else 0.75 * length


def gpu_backend(model: Florence2Model) -> Backend:
    """The backend that the service chooses on a GPU, without the parts that need one."""
    sizes, config = model.config, EngineConfig(encode_stream="off")
    absent = {"CudaMemory": lambda _: AbsentMemory(), "CudaGraphCapturer": lambda *_: None}
    found = {
        "find_kernels": lambda *_: load_kernels(),
        "find_encode_kernels": lambda *_: load_encode_kernels(),
    }
    with patch.multiple(backends, **absent, **found):
        backend = Backend.for_device(DEVICE, DTYPE, sizes.text.decoder_head_dim, sizes.vision, config)
    return replace(backend, pins_attention=False)  # trying attentions needs their values


def fake_model(size: str, *, fp8: bool = False) -> Florence2Model:
    """A loaded model with fake weights."""
    with tempfile.TemporaryDirectory() as folder:
        native_config(size).save_pretrained(folder)
        config = read_config(Path(folder))
    with unset_fake_temporarily():
        normalize = Normalize(MEAN, STD, RESCALE)
        with torch.device("meta"):
            model = Florence2Model(config, normalize)
    model.language.tied_head, model.language.has_logits_bias = True, False
    move(model)
    model.lay_out_for_gpu()
    if fp8:
        multiply_in_fp8(model, load_fp8())
    return model.eval()


def put_beside(model: Florence2Model, adapters: int) -> None:
    """Make slots for `adapters` adapters of rank 16 for the linear layers of the language model."""
    factors = {
        name: Factors(
            torch.empty(RANK_MULTIPLE, layer.in_features), torch.empty(layer.out_features, RANK_MULTIPLE)
        )
        for name, layer in linear_layers(model).items()
        if name.startswith("language.")
    }
    model.adapters = StackedAdapters(model, adapters, load_low_rank())
    model.adapters.reserve([factors])


def move(model: nn.Module) -> None:
    """Move the parameters and buffers to the simulated device, floating ones in `DTYPE`."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            placed = on_device(weight)
            if placed.dim() == 4:  # filters, as the loader lays them out
                placed = placed.contiguous(memory_format=torch.channels_last)
            setattr(module, name, nn.Parameter(placed, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, on_device(buffer))


def on_device(value: Tensor) -> Tensor:
    """A fake tensor of this shape on the device."""
    dtype = DTYPE if value.is_floating_point() else value.dtype
    return torch.empty(value.shape, dtype=dtype, device=DEVICE)


@contextmanager
def without_work() -> Iterator[None]:
    """Compute nothing in the model in this block; results have their shapes."""

    def nothing(*_: Any, **__: Any) -> Any:
        return ()

    def no_chunks(*_: Any) -> Any:
        yield from ()

    def tokens(model: Florence2Model, pixels: torch.Tensor, *_: Any) -> torch.Tensor:
        count = 1 + (pixels.shape[1] // 32) * (pixels.shape[2] // 32)
        width = model.config.text.d_model
        return torch.empty(len(pixels), count, width, dtype=model.dtype, device=pixels.device)

    def tokens_in_chunks(*arguments: Any) -> Any:
        yield from ()
        return tokens(*arguments)

    with ExitStack() as stack:
        for kind, name, instead in (
            (StepContext, "step", nothing),
            (Florence2Model, "encode_images", tokens),
            (Florence2Model, "encode_images_in_chunks", tokens_in_chunks),
            (BucketEncodes, "_write_cross_kv", nothing),
            (Encodes, "_write", no_chunks),
        ):
            stack.enter_context(patch.object(kind, name, instead))
        yield
