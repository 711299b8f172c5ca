"""The Triton kernels are used on a GPU where they agree with their definitions, unless a setting turns
them off. The kernels of steps and of encodes are chosen separately."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from florence.engine.config import EngineConfig, KernelChoice
from florence.engine.device import backend as backends
from florence.engine.device.backend import Backend, products_for
from florence.engine.device.beams.search import advance
from florence.engine.device.cuda import find_kernels as find_cuda_kernels
from florence.engine.device.cuda.find_kernels import (
    find_encode_kernels,
    find_kernels,
    load_encode_kernels,
    load_kernels,
)
from florence.engine.device.memory import DeviceMemory
from florence.model.adapters.lowrank import StackedAdapters
from florence.model.attention import DENSE_ON_GPU
from florence.model.config import VisionConfig
from florence.model.encoding import PLAIN, CompiledEncode
from florence.model.kernels.linear import Linear

GPU = torch.device("cuda:0")
TOWER = VisionConfig((256, 512), (1, 1), (8, 16), (8, 16), 12, 4.0, True, 50, 1)
TABLES = {"kernels": "STEP_KERNELS", "encode_kernels": "ENCODE_KERNELS"}


class Kernel:
    """A kernel without triton, which may fail its check. `checked` has the sizes of its checks."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.checked: list[dict[str, int]] = []

    def fitted(self, **sizes: int) -> Kernel:
        """Record these sizes."""
        self.checked.append(sizes)
        return self

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Pass, or raise the error."""
        assert (device, dtype) == (GPU, torch.bfloat16)
        if self._error is not None:
            raise self._error


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recent enough card, with kernels that pass their checks."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    for module in TABLES:
        use(monkeypatch, module, Kernel())
    monkeypatch.setattr(find_cuda_kernels, "find_spec", lambda _: object())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(find_cuda_kernels, "load_kernels", lambda: ("attention", "search"))
    monkeypatch.setattr(find_cuda_kernels, "load_encode_kernels", lambda: "encode")


def use(monkeypatch: pytest.MonkeyPatch, module: str, kernel: Kernel) -> None:
    """Put this kernel into the module's table."""
    name, table = f"florence.engine.device.cuda.{module}", SimpleNamespace(**{TABLES[module]: [kernel]})
    monkeypatch.setitem(sys.modules, name, table)
    monkeypatch.setattr(name, table, raising=False)


def find_both(**sizes: Any) -> list[Any]:
    """The kernels for steps and for encodes that are found for these sizes."""
    tower = replace(TOWER, **sizes)
    head_dim = 12 if 64 in sum(sizes.values(), ()) else 64
    return [
        find_kernels(GPU, torch.bfloat16, head_dim),
        find_encode_kernels(GPU, torch.bfloat16, tower),
    ]


@pytest.mark.usefixtures("card")
def test_kernels_that_agree_are_used() -> None:
    """Kernels that pass their checks are used."""
    assert find_both() == [("attention", "search"), "encode"]


@pytest.mark.usefixtures("card")
def test_kernels_are_checked_at_the_models_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are checked with each number of beams, encodes with each stage's heads and groups of channels."""
    steps, encodes = Kernel(), Kernel()
    use(monkeypatch, "kernels", steps)
    use(monkeypatch, "encode_kernels", encodes)
    find_both(groups=(16, 16))
    assert steps.checked == [{"beams": beams, "head_dim": 64} for beams in (1, 3, 8)]
    stages = (256, 32), (256, 16), (512, 32)
    assert encodes.checked == [{"dim": dim, "head_dim": size, "window": 12} for dim, size in stages]


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("reason", ["no triton", "no compiler", "an old card", "other heads", "other groups"])
def test_without_them_pytorch_s_operations_are_used_and_the_log_says_so(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the kernels can't run, PyTorch's operations are used, and the log says so."""
    if reason == "no triton":
        monkeypatch.setattr(find_cuda_kernels, "find_spec", lambda _: None)
    if reason == "no compiler":
        monkeypatch.setattr("shutil.which", lambda _: None)
    if reason == "an old card":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    sizes = {"other heads": {"heads": (8, 64)}, "other groups": {"groups": (8, 64)}}.get(reason, {})
    with caplog.at_level(logging.WARNING):
        assert find_both(**sizes) == [None, None]
    assert caplog.text.count("PyTorch's operations") == 2


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("error", [RuntimeError("no image for this GPU"), AssertionError("it differs")])
@pytest.mark.parametrize("module", TABLES)
def test_a_kernel_that_fails_costs_its_own_kind_only(
    module: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing kernel of steps leaves those of encodes in use, and the other way round."""
    use(monkeypatch, module, Kernel(error))
    with caplog.at_level(logging.WARNING):
        steps, encodes = find_both()
    assert (steps is None, encodes is None) == (module == "kernels", module == "encode_kernels")
    assert caplog.text.count("use PyTorch's operations") == 1


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(("kernels", "fails"), [("auto", False), ("auto", True), ("off", False)])
def test_adapters_are_computed_by_kernels_that_agree(
    kernels: KernelChoice, fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a GPU adapters have fixed shapes. Their kernels are used unless they are off, or one fails, which
    the log says."""
    kernel = Kernel(AssertionError("it differs") if fails else None)
    table = SimpleNamespace(LOW_RANK_KERNELS=[kernel])
    monkeypatch.setitem(sys.modules, "florence.engine.device.cuda.kernels", table)
    loaded = object()
    monkeypatch.setattr("florence.engine.device.cuda.products.load_low_rank", lambda: loaded)
    with caplog.at_level(logging.WARNING):
        products = products_for(GPU, torch.bfloat16, EngineConfig(cuda_kernels=kernels))
        bank = products.make_bank(nn.Sequential(Linear(4, 4)), 1)
    assert isinstance(bank, StackedAdapters)
    assert bank.kernels is (loaded if kernels == "auto" and not fails else None)
    assert ("adapters use PyTorch's operations" in caplog.text) is fails


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Backend, list[str]]]:
    """A function that returns the backend for a GPU with kernels, and the kinds of kernels that it looked
    for."""
    monkeypatch.setattr(backends, "CudaMemory", lambda _: DeviceMemory())
    monkeypatch.setattr(backends, "CudaGraphCapturer", lambda *_: None)
    asked: list[str] = []
    steps = SimpleNamespace(grouped=True), object()
    monkeypatch.setattr(backends, "find_kernels", lambda *_: asked.append("steps") or steps)
    monkeypatch.setattr(backends, "find_encode_kernels", lambda *_: asked.append("encodes") or "encode")

    def chosen(**settings: Any) -> tuple[Backend, list[str]]:
        config = EngineConfig(encode_stream="off", **settings)
        return Backend.for_device(GPU, torch.bfloat16, 64, TOWER, config), asked

    return chosen


def test_the_settings_choose(choose: Callable[..., tuple[Backend, list[str]]]) -> None:
    """`off` looks for no kernels; a compiled tower looks for none of encodes."""
    backend, asked = choose(cuda_kernels="off")
    assert backend.attention is DENSE_ON_GPU
    assert (backend.search, backend.encode, asked) == (advance, PLAIN, [])
    backend, asked = choose()
    assert backend.attention.grouped
    assert (backend.encode, asked) == ("encode", ["steps", "encodes"])
    for kernels in ("auto", "off"):
        backend, asked = choose(cuda_kernels=kernels, compile_tower=True)
        assert isinstance(backend.encode, CompiledEncode)
    assert asked.count("encodes") == 1


def test_a_cpu_computes_by_the_modules() -> None:
    """A CPU uses the plain modules, even if a compiled tower is set."""
    backend = Backend.for_device(
        torch.device("cpu"), torch.float32, 64, TOWER, EngineConfig(compile_tower=True)
    )
    assert backend.encode is PLAIN


def test_the_kernels_load_without_a_gpu() -> None:
    """The kernels can be loaded without a GPU, to count or compile them."""
    pytest.importorskip("triton")
    attention, search = load_kernels()
    assert attention.grouped
    assert search is not advance
    assert load_encode_kernels() is not PLAIN
