"""An engine uses no more than the free memory of its device, and names the setting to change if that is too
little."""

from __future__ import annotations

import logging
import re
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from absent_gpu import move
from goldens import imagenet_normalize, load_float32
from hypothesis import given
from hypothesis import strategies as st
from kernel_count import KernelCount
from tiny import make_native
from torch import Tensor

# PyTorch offers fake tensors and dispatch modes in private modules only.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from florence import Florence2
from florence.engine.config import EngineConfig
from florence.engine.device.memory import DeviceMemory
from florence.engine.device.runner import Runner
from florence.engine.device.sizing import GIB, RESERVE_BYTES, Needs, fit_memory
from florence.errors import SettingsError
from florence.model.caches import Caches, CacheSizes
from florence.model.config import GenerationDefaults, ModelConfig, StackConfig, TextConfig, VisionConfig
from florence.model.florence2 import Florence2Model

STACK = StackConfig(12, 16, 4096)
HEADS = (8, 16, 32, 64)
LARGE = ModelConfig(
    VisionConfig((256, 512, 1024, 2048), (1, 1, 9, 1), HEADS, HEADS, 12, 4.0, True, 50, 100),
    TextConfig(51_289, 1024, 1024, "gelu", False, True, STACK, STACK, 2, 0, 1, 2),
    GenerationDefaults(3, 3, True, 1.0, 0, 2),
)
"""The configuration of Florence-2-large."""

NEEDS = Needs.of(LARGE, 1024, (768, 768), 2)
GPU = EngineConfig.for_device("cuda")


class Peak(TorchDispatchMode):
    """Measure the highest number of bytes of tensors that are alive together.

    Storages are identified by a private id: PyTorch has no public one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        """Add a new tensor's memory."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._tensors[key] += 1
        if self._tensors[key] == 1:
            self.now += size
            self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        """Remove a freed tensor's memory."""
        self._tensors[key] -= 1
        if self._tensors[key] == 0:
            self.now -= size


def test_a_picture_needs_what_is_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower's tensors for a picture need at most the estimated memory, and over 80% of it."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", KernelCount().attend)
    with torch.device("meta"):
        model = Florence2Model(LARGE, imagenet_normalize())
    with FakeTensorMode(), torch.no_grad():
        move(model, torch.bfloat16)
        pixels = torch.empty(2, 768, 768, 3, dtype=torch.uint8, device="cuda")
        with Peak() as peak:
            model.encode_images(pixels)
    assert 0.8 * NEEDS.picture < peak.most / 2 < NEEDS.picture


def test_a_slot_needs_its_share_of_the_caches() -> None:
    """A slot's estimate covers its share of the caches and the memory of a step."""
    sizes = CacheSizes(4, 12, 1024, 1000)
    with FakeTensorMode():
        caches = Caches(sizes, LARGE.text.decoder, LARGE.text.d_model, torch.device("cuda"), torch.bfloat16)
    assert caches.nbytes < 4 * NEEDS.request(1000) < 1.3 * caches.nbytes


@pytest.mark.parametrize(
    ("free", "requests", "pictures"),
    [(75.0, 64, 16), (38.0, 64, 16), (21.0, 64, 16), (13.0, 38, 16), (3.0, 5, 3)],
)
def test_cards_of_usual_sizes_hold_so_many_requests(
    caplog: pytest.LogCaptureFixture, free: float, requests: int, pictures: int
) -> None:
    """Cards of 24 GB and more hold all requested slots of Florence-2-large in bfloat16; a smaller card's
    reduction is logged."""
    fitted = fit_memory(GPU, NEEDS, int(free * GIB))
    assert (fitted.max_batch_size, fitted.max_encode_batch) == (requests, pictures)
    assert ("room for" in caplog.text) == ((requests, pictures) != (64, 16))
    assert fitted.picture_cache_bytes == min(2 * GIB, int((free - 1) * GIB) // 16)


@given(st.integers(0, 100 * GIB), st.integers(1, 200), st.integers(1, 64), st.integers(1, 1024))
def test_what_is_taken_fits_or_the_setting_to_change_is_named(
    free: int, requests: int, pictures: int, tokens: int
) -> None:
    """The used memory fits, or an error names a setting, and with the number of tokens that it names there is
    room for a request."""
    asked = EngineConfig(
        max_batch_size=requests, max_encode_batch=pictures, max_new_tokens=tokens, picture_cache_bytes=2**40
    )
    fitted = fit_or_error(asked, free)
    if isinstance(fitted, str):
        named = re.search(r"set FLORENCE_MAX_NEW_TOKENS \(max_new_tokens\) to at most (\d+)", fitted)
        if named is None:
            assert "FLORENCE_MODEL" in fitted
            return
        assert int(named[1]) < tokens
        assert fit_memory(replace(asked, max_new_tokens=int(named[1])), NEEDS, free).max_batch_size == 1
        return
    assert 1 <= fitted.max_batch_size <= requests
    assert 1 <= fitted.max_encode_batch <= pictures
    taken = fitted.max_batch_size * NEEDS.request(tokens) + fitted.max_encode_batch * NEEDS.picture
    taken += tokens * NEEDS.spare
    assert taken + fitted.picture_cache_bytes + RESERVE_BYTES <= free


def fit_or_error(asked: EngineConfig, free: int) -> EngineConfig | str:
    """The fitted configuration, or the error's message."""
    try:
        return fit_memory(asked, NEEDS, free)
    except SettingsError as error:
        return str(error)


def test_where_memory_is_not_shared_out_nothing_changes() -> None:
    """Without a known amount of free memory the configuration stays unchanged."""
    assert fit_memory(GPU, NEEDS, None) == GPU
    assert DeviceMemory().free_bytes() is None


@pytest.mark.parametrize("free", [GIB + 2**23, 2 * GIB])
def test_a_model_is_loaded_with_as_many_requests_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    """A model is loaded with as many slots as fit, or refused before anything is allocated."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(DeviceMemory, "free_bytes", lambda self: free)
    if free < 2 * GIB:
        with pytest.raises(SettingsError, match="free beside the weights"):
            Florence2.load("demo", device="cpu", dtype="float32")
        assert "loaded" not in caplog.text
        return
    config = EngineConfig(max_batch_size=1024)
    with Florence2.load("demo", device="cpu", dtype="float32", config=config):
        found = re.search(r"caches of (\d+) MiB for (\d+) requests", caplog.text)
        assert found is not None
        assert 1 < int(found[2]) < 1024
        assert int(found[1]) < 1024


def test_a_device_that_is_full_names_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the caches can't be allocated in spite of the estimate, the error names the settings."""
    make_native(tmp_path)

    def full(self: Caches, *given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Caches, "__init__", full)
    with pytest.raises(SettingsError, match="FLORENCE_MAX_BATCH_SIZE"):
        Runner(load_float32(tmp_path, 1100), 4)
