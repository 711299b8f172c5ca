"""Where the Triton kernels are used: on a GPU on which they agree with their definitions, unless a setting
says no."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from florence.engine.device import backend as backends
from florence.engine.device import find_cuda_kernels
from florence.engine.device.backend import Backend
from florence.engine.device.find_cuda_kernels import find_kernels, load_kernels
from florence.engine.device.memory import DeviceMemory
from florence.engine.device.search import advance
from florence.model.attention import DenseAttention

GPU = torch.device("cuda:0")


class Kernels:
    """The table of the kernels, in place of the one that needs triton; one kernel may fail its check."""

    def __init__(self, error: Exception | None = None) -> None:
        self.STEP_KERNELS = [self]
        self._error = error

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        assert (device, dtype) == (GPU, torch.bfloat16)
        if self._error is not None:
            raise self._error


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that is new enough, with kernels that pass."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    use(monkeypatch, Kernels())
    monkeypatch.setattr(find_cuda_kernels, "find_spec", lambda _: object())
    monkeypatch.setattr(find_cuda_kernels, "load_kernels", lambda: ("attention", "search"))


def use(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> None:
    name = "florence.engine.device.cuda_kernels"
    monkeypatch.setitem(sys.modules, name, kernels)
    monkeypatch.setattr("florence.engine.device.cuda_kernels", kernels, raising=False)


@pytest.mark.usefixtures("card")
def test_kernels_that_agree_are_used() -> None:
    assert find_kernels(GPU, torch.bfloat16, 64) == ("attention", "search")


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("reason", ["no triton", "an old card", "other heads", "a kernel fails", "differs"])
def test_without_them_decode_steps_use_pytorch_and_the_log_says_so(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if reason == "no triton":
        monkeypatch.setattr(find_cuda_kernels, "find_spec", lambda _: None)
    if reason == "an old card":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    if reason == "a kernel fails":
        use(monkeypatch, Kernels(RuntimeError("no image for this GPU")))
    if reason == "differs":
        use(monkeypatch, Kernels(AssertionError("florence::scan differs from its definition")))
    with caplog.at_level(logging.WARNING):
        assert find_kernels(GPU, torch.bfloat16, 12 if reason == "other heads" else 64) is None
    assert "PyTorch's operations" in caplog.text


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_the_setting_chooses(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`off` does not even look for them."""
    monkeypatch.setattr(backends, "CudaMemory", lambda _: DeviceMemory())
    monkeypatch.setattr(backends, "CudaGraphCapturer", lambda _: None)
    found = SimpleNamespace(grouped=True), object()
    asked: list[int] = []
    monkeypatch.setattr(backends, "find_kernels", lambda *_: asked.append(1) or found)
    backend = Backend.for_device(GPU, torch.bfloat16, 64, cuda_kernels=setting)  # type: ignore[arg-type]
    if setting == "auto":
        assert (backend.attention, backend.search) == found
    else:
        assert isinstance(backend.attention, DenseAttention)
        assert (backend.search, asked) == (advance, [])


def test_the_kernels_load_without_a_gpu() -> None:
    """For whatever counts or compiles them."""
    pytest.importorskip("triton")
    attention, search = load_kernels()
    assert attention.grouped
    assert search is not advance
