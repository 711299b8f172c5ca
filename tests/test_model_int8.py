"""int8 layers are close to the plain ones, and their rows are independent."""

from __future__ import annotations

import copy
import platform
from pathlib import Path

import pytest
import torch
from goldens import load_float32
from tiny import make_native

from florence.errors import SettingsError
from florence.model.devices import has_vnni, pick_dtype
from florence.model.kernels.int8 import Int8Weight, can_quantize
from florence.model.kernels.linear import Linear, pack
from florence.model.kernels.onednn import ACTIVATIONS
from florence.model.quantized import multiply_in_int8

needs_int8 = pytest.mark.skipif(not (can_quantize() and has_vnni()), reason="no int8 here")


def quantised(plain: Linear) -> Linear:
    """A copy of the layer in int8."""
    layer = copy.deepcopy(plain)
    layer.use(Int8Weight(layer.weight.detach(), layer.bias))
    assert layer.weight is None  # int8 is all that is held
    return layer


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 256), (5, 256), (2, 3, 4, 256)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_a_quantised_layer_is_near_the_plain_one(
    dtype: torch.dtype, shape: tuple[int, ...], bias: bool, activation: str | None
) -> None:
    """An int8 layer is close to the plain one for rows of any magnitude, within the quantization error of
    inputs and weights."""
    plain = Linear(256, 80, bias, activation).to(dtype)
    layer = quantised(plain)
    states = torch.randn(shape, dtype=dtype) * torch.logspace(-2, 1, shape[-2])[:, None].to(dtype)
    expected, found = plain(states).float(), layer(states)
    assert found.dtype is dtype
    error = (found.float() - expected).norm(dim=-1) / plain.float()(states.float()).norm(dim=-1)
    assert error.max() < 0.03
    if activation is None:
        residual = torch.randn(expected.shape, dtype=dtype)
        torch.testing.assert_close(layer.plus(states, residual), found + residual)


@needs_int8
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """A row does not depend on a neighbour a thousand times larger."""
    layer = quantised(Linear(64, 48))
    states = torch.randn(6, 64)
    alone = layer(states[2:3])
    states[3] *= 1000
    assert torch.equal(layer(states)[2:3], alone)


@needs_int8
@torch.inference_mode()
def test_integers_within_the_steps_are_exact() -> None:
    """With a maximum of 127 each step is a whole number, so integers are exact."""
    weight, states = (torch.randint(-127, 128, (size, 64)).float() for size in (48, 9))
    weight[:, 0] = states[:, 1] = 127
    assert torch.equal(Int8Weight(weight, None).product(states), states @ weight.T)


@needs_int8
@torch.inference_mode()
def test_zeros_stay_zeros_and_nan_stays_nan() -> None:
    """Zeros and NaN stay in their own rows."""
    layer = quantised(Linear(64, 48))
    states = torch.zeros(3, 64)
    states[1, 5] = torch.nan
    found = layer(states)
    assert torch.equal(found[0], layer.bias)
    assert found[1].isnan().all()
    assert torch.equal(found[2], layer.bias)


@needs_int8
@torch.inference_mode()
def test_a_quantised_model_runs_from_pixels_to_logits(tmp_path: Path) -> None:
    """A model in int8, with its other layers packed, gives picture tokens close to float32 and finite
    logits."""
    vocab = make_native(tmp_path).config.text_config.vocab_size
    plain, model = (load_float32(tmp_path, vocab) for _ in range(2))
    multiply_in_int8(model)
    pack(model)
    pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    tokens, expected = model.encode_images(pixels), plain.encode_images(pixels)
    assert (tokens - expected).norm() < 0.1 * expected.norm()
    encoded = plain.encode(expected, torch.tensor([[0, 71, 2]]))
    states, _ = model.language.decode(
        torch.tensor([[2, 0, 17]]), None, model.language.decoder.cross_kv(encoded)
    )
    assert model.language.logits(states).isfinite().all()


def test_int8_needs_an_x86_cpu_and_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 is not offered on a GPU, without PyTorch's operators, or on another architecture."""
    monkeypatch.setattr("florence.model.devices.has_vnni", lambda: True)
    monkeypatch.setattr("florence.model.devices.can_quantize", lambda: True)
    with pytest.raises(SettingsError, match="needs a CPU"):
        pick_dtype("int8", torch.device("cuda"))
    monkeypatch.setattr(torch.ops, "onednn", object())
    assert not can_quantize()
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not can_quantize()
