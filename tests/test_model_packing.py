"""Packed layers give the results of plain ones, within the rounding of their dtype."""

from __future__ import annotations

import copy
import platform
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from goldens import imagenet_normalize, load_float32
from tiny import make_native
from torch import nn

from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.engine.device.backend import products_for
from florence.model.kernels import linear, onednn
from florence.model.kernels.cpu import openmp, products
from florence.model.kernels.cpu.products import PanelWeight
from florence.model.kernels.linear import Conv2d, Linear, pack
from florence.model.kernels.onednn import ACTIVATIONS, OPERATORS, OneDnnWeight
from florence.model.language import LanguageModel

CPU = torch.device("cpu")
HERE = [dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if onednn.available(dtype)]
DTYPES = [pytest.param(dtype, id=str(dtype)) for dtype in HERE]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def both(layer: Linear | Conv2d, dtype: torch.dtype) -> tuple[Linear | Conv2d, Linear | Conv2d]:
    """The layer in this dtype, plain and packed for oneDNN."""
    plain = layer.to(dtype).requires_grad_(False)
    packed = copy.deepcopy(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "make_products", lambda *_: None)
        assert pack(packed)
    assert packed.weight is None  # one copy is held, not two
    return plain, packed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 48), (3, 48), (200, 48), (2, 7, 48), (2, 3, 4, 48)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_linear_layer_is_the_plain_one(
    dtype: torch.dtype, shape: tuple[int, ...], activation: str | None, bias: bool
) -> None:
    """A packed linear layer gives the plain one's result, with and without a residual."""
    plain, packed = both(Linear(48, 80, bias, activation), dtype)
    states = torch.randn(shape, dtype=dtype) * 2
    close = {"atol": ROUNDING[dtype], "rtol": ROUNDING[dtype]}
    torch.testing.assert_close(packed(states), plain(states), **close)
    if activation is None:
        assert isinstance(plain, Linear)
        assert isinstance(packed, Linear)
        residual = torch.randn(*shape[:-1], 80, dtype=dtype)
        before = residual.clone()
        torch.testing.assert_close(packed.plus(states, residual), plain.plus(states, residual), **close)
        torch.testing.assert_close(plain.plus(states, residual), residual + plain(states))
        assert torch.equal(residual, before)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_views_give_the_result_of_their_values(dtype: torch.dtype) -> None:
    """Rows of a larger tensor, transposed and cut ones give the right result without a copy by the caller."""
    plain, packed = both(Linear(48, 80), dtype)
    states, residual = torch.randn(96, 5, 2, dtype=dtype), torch.randn(80, 9, dtype=dtype)
    for view in (states[:48, :, 0].T, states.transpose(0, 2)[:, :, 16:64], states[::2, :, 1].T[1:]):
        torch.testing.assert_close(packed(view), plain(view), atol=2e-2, rtol=2e-2)
    view, added = states[:48].transpose(0, 1)[..., 0], residual.T[:5]
    torch.testing.assert_close(packed.plus(view, added), plain.plus(view, added), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 8), (5, 12), (2, 1)])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 16), (3, 2, 1), (7, 4, 1)])
@torch.inference_mode()
def test_a_packed_convolution_is_the_plain_one(
    dtype: torch.dtype, size: tuple[int, int], kernel: int, stride: int, groups: int
) -> None:
    """A packed convolution gives the plain one's result."""
    plain, packed = both(Conv2d(16, 16, kernel, stride, groups), dtype)
    cells = torch.randn(2, *size, 16, dtype=dtype)
    close = {"atol": ROUNDING[dtype], "rtol": ROUNDING[dtype]}
    values = F.conv2d(cells.permute(0, 3, 1, 2), plain.weight, plain.bias, stride, kernel // 2, groups=groups)
    torch.testing.assert_close(plain(cells), values.permute(0, 2, 3, 1), **close)
    torch.testing.assert_close(packed(cells), plain(cells), **close)
    if stride == 1:
        torch.testing.assert_close(packed.plus(cells), plain.plus(cells), **close)
        torch.testing.assert_close(plain.plus(cells), cells + plain(cells))


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.skipif(not HERE, reason="nothing is packed here")
def test_a_packed_model_gives_the_plain_ones_numbers(tmp_path: Path) -> None:
    """A packed model gives the plain one's logits, and the embedding tied to the head stays."""
    vocab = make_native(tmp_path).config.text_config.vocab_size
    plain, packed = (load_float32(tmp_path, vocab) for _ in range(2))
    assert pack(packed)
    assert torch.equal(packed.language.shared.weight, plain.language.shared.weight)
    assert not any(
        name.endswith(("proj.weight", "fc1.weight", "lm_head.weight")) for name in packed.state_dict()
    )
    pixels = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    prompt, forced = torch.tensor([[0, 71, 412, 2]] * 2), torch.tensor([[2, 0, 17]] * 2)
    logits = []
    for model in (plain, packed):
        encoded = model.encode(model.encode_images(pixels), prompt)
        states, _ = model.language.decode(forced, None, model.language.decoder.cross_kv(encoded))
        logits.append(model.language.logits(states))
    assert logits[0].std() > 0.1
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["plain", "onednn", "kernel"])
def test_the_highest_logits_are_those_of_float32(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 each kernel gives float32's highest logits of a row and their index; lower logits are
    the product's own."""
    vocab = make_native(tmp_path).config.text_config.vocab_size
    language = load_model(
        tmp_path, read_config(tmp_path), imagenet_normalize(), vocab, CPU, torch.bfloat16
    ).language
    noise = torch.randn(20, 50, language.shared.embedding_dim, generator=torch.Generator().manual_seed(0))
    states = 3 * noise.bfloat16()
    right = F.linear(states.float(), language.shared.weight.float())
    coarse = language.lm_head(states).float()
    if kind != "plain":
        pack_for(language, kind, monkeypatch)
    scores = language.logits(states)
    close = (scores - right).abs() < 1e-4
    assert (close | (scores == coarse)).all()
    assert bool(close.all()) is (kind == "kernel")
    best = right.topk(8, dim=-1).indices
    assert close.gather(-1, best).all()
    assert torch.equal(scores.argmax(-1), right.argmax(-1))
    assert not torch.equal(coarse.argmax(-1), right.argmax(-1))  # the product alone can miss it
    assert language.has_logits_bias is False
    if kind != "kernel":
        language.tied_head = False  # a head of its own: its product as it is
        assert torch.equal(language.logits(states), language.lm_head(states).float())


def pack_for(model: LanguageModel, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack a model for oneDNN or for the project's kernel, on any processor that has it."""
    if kind == "kernel" and not openmp.available(torch.bfloat16):
        pytest.skip("no kernels here")
    if kind == "onednn" and not onednn.available(torch.bfloat16):
        pytest.skip("no such operators here")
    monkeypatch.setattr(products, "has_fast_bf16", lambda: kind == "onednn")
    pack(model)
    wanted = {"kernel": PanelWeight, "onednn": OneDnnWeight}[kind]
    assert isinstance(model.lm_head.packed, wanted)


@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_is_packed_where_an_operator_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of PyTorch's operators and without the project's kernel, layers stay plain."""
    monkeypatch.setattr(linear, "make_products", lambda *_: None)
    present = {other: None for other in OPERATORS if other != name}
    monkeypatch.setattr(torch.ops, "mkldnn", type("Namespace", (), present)())
    layer = Linear(4, 4)
    assert not pack(layer)
    assert layer(torch.ones(1, 4)).shape == (1, 4)


def test_nothing_is_packed_on_other_machines_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, in float64 or on another architecture nothing is packed, for oneDNN or the project's
    kernel."""
    layer = Linear(32, 32)
    products_for(torch.device("cuda"), torch.float32).pack(layer)
    assert layer.packed is None
    assert not onednn.available(torch.float64)
    assert linear.make_products(torch.float64, None) is None
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not onednn.available(torch.float32)
    assert linear.make_products(torch.float32, None) is None


@pytest.mark.slow
@pytest.mark.skipif(not openmp.available(torch.float32), reason="no kernels here")
def test_the_kernel_computes_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's kernel is used except for layers of odd widths, and for bfloat16 where the processor
    multiplies it faster than float32."""
    for fast in (True, False):
        monkeypatch.setattr(products, "has_fast_bf16", lambda fast=fast: fast)
        assert (linear.make_products(torch.bfloat16, None) is None) is fast
        assert linear.make_products(torch.float32, None) is not None
    fitting, odd = Linear(32, 8), Linear(24, 8)
    pack(nn.Sequential(fitting, odd))
    assert isinstance(fitting.packed, PanelWeight)
    assert not isinstance(odd.packed, PanelWeight)
    monkeypatch.setattr(onednn, "available", lambda *_: False)
    left = Linear(24, 8)
    assert not pack(left)
    assert left.packed is None
