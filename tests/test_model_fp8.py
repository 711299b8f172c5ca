"""fp8 layers are close to the plain ones, their rows are independent, and only the intended layers are in
fp8."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from goldens import load_float32
from tiny import make_native
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # the path in PyTorch's documentation

from florence import Florence2
from florence.engine.device.backend import products_for
from florence.engine.device.cuda.products import CudaProducts
from florence.errors import SettingsError
from florence.model.devices import pick_dtype
from florence.model.florence2 import Florence2Model
from florence.model.kernels import fp8
from florence.model.kernels.fp8 import EMULATED, Fp8Products, Fp8Weight, quantize_rows
from florence.model.kernels.linear import Linear
from florence.model.kernels.onednn import ACTIVATIONS
from florence.model.quantized import multiply_in_fp8

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
WIDE = {  # all sizes of the tower's third stage and the text encoder are multiples of 16
    "vision_config": {"embed_dim": [16, 16, 32, 64], "num_heads": [1, 2, 2, 4], "num_groups": [2, 1, 4, 8]},
    "text_config": {"d_model": 48, "encoder_ffn_dim": 64, "encoder_layers": 2},
}


def in_fp8(plain: Linear) -> Linear:
    """A copy of the layer in fp8."""
    layer = copy.deepcopy(plain)
    layer.use(Fp8Weight(layer.weight.detach(), layer.bias))
    return layer


@pytest.mark.parametrize("shape", [(1, 256), (5, 256), (2, 3, 4, 256)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_a_layer_in_fp8_is_near_the_plain_one(
    shape: tuple[int, ...], bias: bool, activation: str | None
) -> None:
    """An fp8 layer is close to the plain one for rows of any magnitude, within the rounding of inputs and
    weights; a residual is added."""
    plain = Linear(256, 80, bias, activation).bfloat16()
    layer = in_fp8(plain)
    states = (torch.randn(shape) * torch.logspace(-2, 1, shape[-2])[:, None]).bfloat16()
    expected, found = plain.float()(states.float()), layer(states)
    assert found.dtype is torch.bfloat16
    assert ((found.float() - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 0.08
    if activation is None:
        residual = torch.randn(expected.shape).bfloat16()
        torch.testing.assert_close(layer.plus(states, residual), found + residual)


@torch.inference_mode()
def test_numbers_of_e4m3_are_multiplied_exactly() -> None:
    """Numbers that fp8 holds are multiplied exactly: with a row maximum of 448 its scale is 1, and sums
    are float32."""
    numbers = torch.arange(256, dtype=torch.uint8).view(fp8.E4M3).float()
    numbers = numbers[numbers.isfinite()]
    weight, states = (numbers[torch.randint(len(numbers), (size, 64))] for size in (48, 9))
    weight[:, 0] = states[:, 1] = 448
    found = Fp8Weight(weight, None).product(states.bfloat16())
    torch.testing.assert_close(found, (states.double() @ weight.double().T).bfloat16(), rtol=2**-7, atol=0.0)


@torch.inference_mode()
def test_rows_are_rounded_to_the_nearest_by_their_own_scale() -> None:
    """A row is scaled to a maximum of 448, and each value rounded to the nearest with three fraction bits."""
    rows = torch.randn(20, 512) * torch.logspace(-6, 6, 20)[:, None]
    values, scales = quantize_rows(rows)
    exact = rows.double() / scales.double()
    assert values.float().abs().amax(1).eq(448).all()
    step = exact.abs().clamp_min(2**-6).log2().floor().exp2() / 8
    assert ((values.double() - exact).abs() <= step / 2 * (1 + 1e-6)).all()


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """A row does not depend on a neighbour a thousand times larger; zeros and NaN stay in their rows."""
    layer = in_fp8(Linear(64, 48).bfloat16())
    states = torch.randn(6, 64).bfloat16()
    states[4] = 0
    alone = layer(states[2:3])
    states[3] *= 1000
    states[5, 7] = torch.nan
    found = layer(states)
    assert torch.equal(found[2:3], alone)
    assert torch.equal(found[4], layer.bias)
    assert found[5].isnan().all()
    assert found[:5].isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with sizes that are multiples of 16."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    make_native(directory, **WIDE)
    return directory


def load(folder: Path, *, fused: bool) -> Florence2Model:
    """The model in bfloat16, in a GPU's layout if `fused`."""
    model = load_float32(folder, 1100).bfloat16()
    model.vision.normalize.table = model.vision.normalize.table.bfloat16()
    if fused:
        model.language.lay_out_for_gpu()
    return model


@pytest.mark.parametrize("fused", [True, False], ids=["a GPU's layout", "a CPU's"])
@torch.inference_mode()
def test_the_third_stage_and_the_text_encoder_are_in_fp8_and_nothing_else(folder: Path, fused: bool) -> None:
    """Exactly the linear layers of the third stage and the text encoder are in fp8, without their plain
    weights; an encode is close to the plain one."""
    plain, model = load(folder, fused=fused), load(folder, fused=fused)
    multiply_in_fp8(model)
    parts = (model.vision.tower.stages[2].blocks, model.language.encoder.layers)
    low = {module for part in parts for module in part.modules() if isinstance(module, Linear)}
    for module in model.modules():
        if isinstance(module, Linear):
            assert (module.weight is None) == (module in low)
    with pytest.raises(ValueError, match="packed already"):
        multiply_in_fp8(model)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    tokens, expected = model.encode_images(pixels), plain.encode_images(pixels)
    assert 0 < (tokens - expected).norm() < 0.2 * expected.norm()
    prompt = torch.tensor([[0, 71, 2]] * 2)
    found, exact = (each.encode(expected, prompt) for each in (model, plain))
    assert 0 < (found - exact).norm() < 0.2 * exact.norm()


@torch.inference_mode()
def test_one_product_for_queries_keys_and_values_gives_what_three_give(folder: Path) -> None:
    """Scales belong to rows and outputs, so one fused product gives what three give."""
    models = [load(folder, fused=fused) for fused in (True, False)]
    for model in models:
        multiply_in_fp8(model)
    tokens, prompt = torch.randn(2, 5, 48).bfloat16(), torch.tensor([[0, 71, 2]] * 2)
    one, three = (model.encode(tokens, prompt) for model in models)
    torch.testing.assert_close(one, three)


@torch.inference_mode()
def test_layers_of_other_sizes_keep_their_dtype() -> None:
    """Layers whose sizes aren't multiples of 16 stay plain, as a GPU requires."""
    assert fp8.fits(torch.empty(32, 48))
    assert not fp8.fits(torch.empty(40, 48))
    assert not fp8.fits(torch.empty(48, 40))


def test_a_product_on_a_gpu_is_one_operation_in_fp8() -> None:
    """A product on a (fake) GPU runs in fp8, with a scale for each row and each output."""
    with FakeTensorMode(), torch.device("cuda"):
        states = torch.empty(2, 5, 64, dtype=torch.bfloat16)
        weight, bias = (torch.empty(shape, dtype=torch.bfloat16) for shape in ((48, 64), (48,)))
        layer = Fp8Weight(weight, bias, Fp8Products(multiply=fp8.multiply))
        made = layer.product(states, residual=torch.empty(2, 5, 48, dtype=torch.bfloat16))
        assert (made.shape, made.dtype, made.device.type) == ((2, 5, 48), torch.bfloat16, "cuda")
        assert layer.weight.dtype is fp8.E4M3


def test_which_devices_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs from sm_89 on have fp8, a CPU emulates it; the rest of the model is bfloat16."""
    assert pick_dtype("fp8", CPU) is torch.bfloat16
    for capability, has in (((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        if has:
            assert pick_dtype("fp8", GPU) is torch.bfloat16
        else:
            with pytest.raises(SettingsError, match=r"compute capability 8\.9"):
                pick_dtype("fp8", GPU)
    monkeypatch.delattr(torch, "_scaled_mm")  # the product in fp8, which has no public name
    with pytest.raises(SettingsError):
        pick_dtype("fp8", GPU)


def test_a_gpu_whose_products_differ_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that fails the fp8 check is refused at start-up; a CPU needs no check."""
    fp8.check(CPU, EMULATED)
    with pytest.raises(AssertionError):
        fp8.check(CPU, Fp8Products(multiply=lambda *given: fp8.emulate(*given) * 1.1))
    assert products_for(CPU, torch.bfloat16).fp8() is EMULATED

    def failing(*_: object) -> Tensor:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(fp8, "check", failing)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    with pytest.raises(SettingsError, match="choose another dtype: no kernel image"):
        CudaProducts(GPU, torch.bfloat16, "off").fp8()


def test_the_library_loads_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library loads a model in fp8, and its info says so."""
    with Florence2.load("demo", device="cpu", dtype="fp8") as model:
        assert model.info()["dtype"] == "fp8"
