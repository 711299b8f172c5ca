"""Each backend for an encode's layers gives the plain modules' results, checked on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import load_float32
from tiny import make_native
from torch import Tensor

from florence.model.adapters.lowrank import Factors, StackedAdapters, linear_layers
from florence.model.caches import Caches, CacheSizes
from florence.model.chunks import run_to_end
from florence.model.encoding import PLAIN, CompiledEncode, EncodeBackend
from florence.model.florence2 import Florence2Model
from florence.model.kernels import onednn
from florence.model.kernels.linear import Linear

CPU, PROMPT = torch.device("cpu"), 6


@pytest.fixture
def model(tmp_path: Path) -> Florence2Model:
    """A tiny model, laid out for a GPU."""
    make_native(tmp_path, text_config={"encoder_layers": 2}, vision_config={"depths": [1] * 4})
    made = load_float32(tmp_path, 1100)
    made.lay_out_for_gpu()
    return made


@torch.inference_mode()
def encoded(model: Florence2Model, backend: EncodeBackend, side: int = 96) -> list[Tensor]:
    """The picture tokens, the encoder states, and the values written to the caches."""
    torch.manual_seed(0)
    text, language = model.config.text, model.language
    pixels = torch.randint(256, (2, side, side, 3), dtype=torch.uint8)
    tokens = model.encode_images(pixels, backend)
    mask = torch.ones(2, tokens.shape[1] + PROMPT, dtype=torch.bool)
    mask[1, -2:] = False
    ids = torch.randint(3, 1000, (2, PROMPT))
    states = run_to_end(language.encode_in_chunks(tokens, ids, mask, backend))
    sizes = CacheSizes(3, 3, tokens.shape[1] + PROMPT + 2, 4)
    caches = Caches(sizes, text.decoder, text.d_model, CPU, torch.float32)
    backend.write_cross_kv(language.decoder, states, caches, torch.tensor([2, 0]))
    return [tokens, states, caches.cross_keys, caches.cross_values]


@pytest.fixture
def by_twins(monkeypatch: pytest.MonkeyPatch) -> EncodeBackend:
    """The backend of the Triton kernels, computed by their reference implementations."""
    pytest.importorskip("triton", reason="PyTorch's builds for CPUs have no triton")
    from florence.model.cuda import encoding as cuda_encoding
    from florence.model.cuda import layers as cuda_layers
    from florence.model.kernels.cuda import tower_twins, twins

    def scores(qkv: Tensor, groups: int) -> Tensor:
        return tower_twins.channel_scores(qkv, groups, 1)

    for module, names in (
        (cuda_encoding.copies, ("look_up", "write_cross")),
        (cuda_encoding.positions, ("position_norm",)),
        (cuda_encoding.tower_attention, ("window_attention", "channel_mix")),
        (cuda_layers.gelu, ("gelu_linear",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(tower_twins, name))
    monkeypatch.setattr(cuda_encoding.tower_attention, "channel_scores", scores)
    monkeypatch.setattr(cuda_layers.norms, "add_norm", twins.add_norm)
    monkeypatch.setattr(cuda_layers.gelu, "takes", lambda dtype: True)
    return cuda_encoding.CudaEncode()


@pytest.mark.parametrize("side", [64, 96])
def test_the_kernels_definitions_make_the_modules_encode(
    model: Florence2Model, by_twins: EncodeBackend, side: int
) -> None:
    """The reference gives the modules' results, also for pictures that don't fill their windows; biases,
    residuals and norms count once."""
    for mine, theirs in zip(encoded(model, by_twins, side), encoded(model, PLAIN, side), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["tower", "language"])
def test_layers_that_are_packed_compute_themselves(
    model: Florence2Model, by_twins: EncodeBackend, part: str
) -> None:
    """Layers packed for oneDNN compute themselves, and their bias is added once."""
    if not onednn.available(torch.float32):
        pytest.skip("PyTorch has no oneDNN here")
    expected = encoded(model, PLAIN)
    for module in (model.vision.tower if part == "tower" else model.language.encoder).modules():
        if isinstance(module, Linear):
            module.pack()
    for mine, theirs in zip(encoded(model, by_twins), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_not_laid_out_is_encoded_too(by_twins: EncodeBackend, tmp_path: Path) -> None:
    """A model without the GPU's layout is encoded too: filters are transposed when read, and keys and
    values come from separate layers."""
    make_native(tmp_path)
    model = load_float32(tmp_path, 1100)
    for mine, theirs in zip(encoded(model, by_twins), encoded(model, PLAIN), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def without_traces() -> Iterator[None]:
    """Reset the compiler after the test."""
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("without_traces")
def test_a_compiled_tower_gives_the_same(model: Florence2Model, caplog: pytest.LogCaptureFixture) -> None:
    """Each block is traced as a whole, and the trace has the modules' operations."""
    with caplog.at_level(logging.WARNING):
        compiled = encoded(model, CompiledEncode("eager"))
    assert caplog.text == ""
    for mine, theirs in zip(compiled, encoded(model, PLAIN), strict=True):
        assert torch.equal(mine, theirs)


def test_a_compiler_that_fails_is_left_alone(
    model: Florence2Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing compiler gives one warning; then the plain blocks run."""
    backend, tried = CompiledEncode(), list[int]()

    def fail(*_: Any, **options: Any) -> None:
        tried.append(1)
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", fail)
    with caplog.at_level(logging.WARNING):
        made = encoded(model, backend)
    assert len(tried) == 1
    assert caplog.text.count("torch.compile can't compute the tower") == 1
    for mine, theirs in zip(made, encoded(model, PLAIN), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_adapters_beside_the_layers_are_added(
    model: Florence2Model, by_twins: EncodeBackend, part: str
) -> None:
    """A row gets its own adapter or none, on all layers of the tower or the language model."""
    model.adapters = StackedAdapters(model, 2)
    dice = torch.Generator().manual_seed(0)
    layers = {
        name: Factors(
            0.3 * torch.randn(4, layer.in_features, generator=dice),
            0.3 * torch.randn(layer.out_features, 4, generator=dice),
        )
        for name, layer in linear_layers(model).items()
        if name.startswith(part)
    }
    model.adapters.place(2, layers)
    without = encoded(model, PLAIN)
    with torch.inference_mode(), model.with_adapters(torch.tensor([0, 2])):
        mine, theirs = encoded(model, by_twins), encoded(model, PLAIN)
    assert torch.equal(theirs[1][0], without[1][0])
    assert not torch.allclose(theirs[1][1], without[1][1], atol=0.1)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
