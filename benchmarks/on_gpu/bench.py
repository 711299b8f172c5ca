"""The measured models and engines, and the clocks: models made once, runners and engines as in the service,
and times between CUDA events."""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from random_models import SIDE, backend_of, load_saved, make_native, picture_tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Florence2ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from florence.engine.config import DEFAULT_ENCODE_BUDGET_MS, EncodeStreamChoice, EngineConfig
from florence.engine.device.backend import Backend
from florence.engine.device.capture.graphs import EagerCapturer, GraphCapturer, Replay, Work
from florence.engine.device.encode.stream import EncodeStream
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.model.encoding import EncodeBackend
from florence.model.florence2 import Florence2Model

BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)
"""Backends of PyTorch's attention."""


@dataclass
class Watched:
    """A record of replays: `recent`, the last ones in order; `captured`: the number of graphs."""

    captured: int = 0
    recent: list[Replay] = field(default_factory=list)

    def watching(self, inner: GraphCapturer) -> GraphCapturer:
        """The same capturer, with a record of its replays."""
        return _Watching(inner, self)


@dataclass
class _Watching:
    """A capturer that records the replays of another."""

    inner: GraphCapturer
    told: Watched

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """Capture the work, and record the graph and its replays."""
        replay, results = self.inner.capture(work)
        self.told.captured += 1

        def watched() -> None:
            self.told.recent.append(replay)
            replay()

        return watched, results

    def reset(self) -> None:
        """Reset the other capturer and forget the replays."""
        self.inner.reset()
        self.told.recent.clear()


class BesideOnCpu(EncodeStream):
    """A stream whose encodes run at once but are handled as on a stream of their own, for a rehearsal."""

    beside = True

    def __init__(self) -> None:
        self.capturer = EagerCapturer()


@dataclass
class Bench:
    """The engine and model under test. `slots`, `encode_batch`: of the service's engine. `capture`: steps and
    encodes are captured. `encode_stream`: the setting."""

    size: str
    device: torch.device
    dtype: torch.dtype
    slots: int = 64
    encode_batch: int = 16
    capture: bool = True
    encode_stream: EncodeStreamChoice = "auto"

    @property
    def on_gpu(self) -> bool:
        """True on a CUDA device."""
        return self.device.type == "cuda"

    @cached_property
    def folder(self) -> Path:
        """The folder of the random weights in float32, made and saved once."""
        self._kept = tempfile.TemporaryDirectory()
        try:
            with self.device:  # the host would take a hundred times as long
                native = make_native(self.size, torch.float32)
        except Exception:  # noqa: BLE001  (everything else depends on this)
            native = make_native(self.size, torch.float32)
        native.save_pretrained(self._kept.name)
        return Path(self._kept.name)

    def close(self) -> None:
        """Remove the saved weights."""
        if "folder" in self.__dict__:
            self._kept.cleanup()

    def native(self) -> Florence2ForConditionalGeneration:
        """transformers' model with the same weights, unchanged."""
        return (
            Florence2ForConditionalGeneration.from_pretrained(self.folder, dtype=self.dtype)
            .to(self.device)
            .eval()
        )

    def load(self, dtype: torch.dtype | None = None) -> Florence2Model:
        """This package's model with these weights, loaded by its own code."""
        return load_saved(self.folder, self.device, dtype or self.dtype)

    def load_fp8(self) -> Florence2Model:
        """`load` in bfloat16, with products in fp8, which a CPU emulates. Raises an error if the card has no
        fp8."""
        return load_saved(self.folder, self.device, torch.bfloat16, "fp8")

    @cached_property
    def model(self) -> Florence2Model:
        """The model of `load`, loaded once."""
        return self.load()

    def backend(self, model: Florence2Model) -> tuple[Backend, Watched]:
        """The service's backend for the model, with a record of its replays; on a CPU, the same
        fixed shapes."""
        backend, watched = backend_of(model, self.encode_stream), Watched()
        if not self.on_gpu:
            backend = Backend(
                capturer=EagerCapturer(),
                delayed_readback=True,
                free_host_reads=False,
                encode_stream=EncodeStream() if self.encode_stream == "off" else BesideOnCpu(),
                encode_budget_s=DEFAULT_ENCODE_BUDGET_MS / 1000 if self.encode_stream == "auto" else None,
            )
        if not self.capture or backend.capturer is None:
            return replace(backend, capturer=None, encode_stream=EncodeStream()), watched
        stream = backend.encode_stream
        if stream.capturer is not None:
            stream.capturer = watched.watching(stream.capturer)
        return replace(backend, capturer=watched.watching(backend.capturer)), watched

    def runner(
        self, model: Florence2Model, slots: int | None = None, feature_bytes: int = 0
    ) -> tuple[Runner, Watched]:
        """A runner, and the record of its replays."""
        backend, watched = self.backend(model)
        slots = slots or self.slots
        runner = Runner(
            model,
            slots,
            backend=backend,
            picture_tokens=picture_tokens(self.size),
            encode_batch=min(slots, self.encode_batch),
            picture_size=(SIDE[self.size], SIDE[self.size]),
            feature_bytes=feature_bytes,
        )
        return runner, watched

    @cached_property
    def served_encode(self) -> EncodeBackend:
        """The service's backend for encodes."""
        return self.backend(self.model)[0].encode

    @cached_property
    def service(self) -> tuple[Runner, Watched]:
        """A runner as in the service with all its graphs captured, made once."""
        runner, watched = self.runner(self.model)
        runner.prepare()
        return runner, watched

    def drop_service(self) -> None:
        """Free the service's caches and graphs."""
        self.__dict__.pop("service", None)
        forget()

    def engine(self, model: Florence2Model, slots: int | None = None, **config: Any) -> Engine:
        """An engine with the service's configuration."""
        settings = EngineConfig.for_device(
            "cuda",
            max_batch_size=slots or self.slots,
            max_encode_batch=min(slots or self.slots, self.encode_batch),
            max_prompt_tokens=1024 - picture_tokens(self.size),
            **config,
        )
        tries = self.on_gpu or self.encode_stream != "auto"  # a rehearsal runs the trial once, for `service`
        bench = self if tries else replace(self, encode_stream="on")
        runner, _ = bench.runner(model, slots, settings.picture_cache_bytes)
        return Engine(runner, settings)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def device_ms(self, work: Callable[[], object], repeats: int = 20) -> float:
        """Milliseconds of the work, sent `repeats` times in a row, between two events of the device; on a CPU
        by the host's clock.

        The first run does not count.
        """
        work()
        if not self.on_gpu:
            return self.host_ms(work, 1)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self.synchronize()
        first.record()
        for _ in range(repeats):
            work()
        last.record()
        self.synchronize()
        return float(first.elapsed_time(last)) / repeats

    def host_ms(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median milliseconds until the work is done, on the host's clock."""
        times = []
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Work without graphs in this block, for the case that capture fails."""
        self.capture = False
        try:
            yield
        finally:
            self.capture = True


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Work without cuDNN's attention in this block, for the case that cuDNN finds no plan."""
    before = torch.backends.cuda.cudnn_sdp_enabled()  # an engine may have turned it off
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def attend(backend: SDPBackend, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's attention with this backend only."""
    with sdpa_kernel([backend]):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def forget() -> None:
    """Free the memory of closed objects: captured work has reference cycles, and PyTorch keeps
    freed memory."""
    gc.collect()
    torch.cuda.empty_cache()
