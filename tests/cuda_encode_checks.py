"""Checks of an encode's Triton kernels on a CPU, in triton's interpreter. `test_model_cuda_kernels.py` runs
them in a process of their own, as it does `cuda_checks.py`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_checks import DTYPES, disturbed, numbers
from goldens import load_float32
from tiny import make_native
from torch import Tensor

from florence.engine.device.cuda.encode_kernels import ENCODE_KERNELS, EncodeSizes
from florence.engine.device.cuda.kernel import CudaKernel
from florence.model.caches import Caches, CacheSizes
from florence.model.chunks import run_to_end
from florence.model.cuda.encoding import CudaEncode
from florence.model.encoding import PLAIN
from florence.model.kernels.cuda import copies, gelu, norms, positions, tower_attention, tower_twins, twins

CPU = torch.device("cpu")
SEEDS = range(3)
EACH = pytest.mark.parametrize(("dice", "dtype"), [*enumerate(DTYPES)], indirect=["dice"], ids=str)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """A random source; it seeds torch too."""
    torch.manual_seed(request.param)
    return random.Random(request.param)


def same(kernel: Callable[..., Any], twin: Callable[..., Any], *arguments: Any) -> None:
    """Check that both functions give the same for these arguments, within the rounding of their dtype."""
    torch.testing.assert_close(kernel(*arguments), twin(*arguments), **DTYPES[arguments[0].dtype])


@EACH
def test_positions_and_norm_equal_their_twin(
    dice: random.Random, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel for positions and norm equals its reference, for any picture size, strip length and bias."""
    monkeypatch.setattr(positions, "PROGRAMS", dice.choice([1, 40]))
    monkeypatch.setattr(positions, "ROW_VALUES", dice.choice([64, 512]))
    dim, height, width = dice.choice([16, 48, 64]), dice.randint(1, 9), dice.randint(1, 9)
    cells, taps = numbers(2, height, width, dim, dtype=dtype), numbers(9, dim, dtype=dtype)
    vectors = [numbers(dim, dtype=dtype) for _ in range(4)]
    following = dice.choice([vectors[3], None])
    same(positions.position_norm, tower_twins.position_norm, cells, taps, *vectors[:3], following, 1e-5)


@EACH
def test_windows_equal_their_twin(dice: random.Random, dtype: torch.dtype) -> None:
    """Window attention equals its reference for windows of more cells than a block.

    Windows may reach beyond the picture, where cells of zeros take part; there is a bias or none.
    """
    heads, side = dice.choice([1, 2]), dice.choice([3, 6, 7])
    qkv = numbers(2, dice.randint(1, 9), dice.randint(1, 9), 3 * heads * 16, dtype=dtype)
    bias = dice.choice([numbers(qkv.shape[-1], dtype=dtype), None])
    same(tower_attention.window_attention, tower_twins.window_attention, qkv, bias, heads, side)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dice", SEEDS, indirect=True)
def test_channels_equal_their_twin(
    dice: random.Random, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channel attention equals its reference, whether one program reads all cells or several share them."""
    monkeypatch.setattr(tower_attention, "PROGRAMS", dice.choice([1, 100]))
    groups = dice.choice([1, 3])
    qkv = numbers(2, 13, dice.randint(9, 22), 3 * groups * 16, dtype=dtype)
    parts = tower_attention.channel_scores(qkv, groups)
    expected = tower_twins.channel_scores(qkv, groups, 1)
    torch.testing.assert_close(parts.sum(2), expected[:, :, 0], rtol=1e-4, atol=1e-4)
    same(tower_attention.channel_mix, tower_twins.channel_mix, qkv, parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dice", SEEDS, indirect=True)
def test_products_with_gelu_equal_their_twin(
    dice: random.Random, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products with GELU equal their reference, for sizes that fill whole tiles and for others; the last
    group of tiles is smaller."""
    monkeypatch.setattr(gelu, "SMALL", gelu.Tile(16, 32, 16, 1, 1))
    monkeypatch.setattr(gelu, "GROUP", 2)
    inner, outputs = dice.choice([16, 40, 48]), dice.choice([32, 72])
    states = numbers(2, dice.randint(1, 40), inner, dtype=dtype)
    weight, bias = numbers(outputs, inner, dtype=dtype) * inner**-0.5, numbers(outputs, dtype=dtype)
    same(gelu.gelu_linear, tower_twins.gelu_linear, states, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_equal_their_twins(dtype: torch.dtype) -> None:
    """The copy kernels equal their references bit for bit; keys and values are written only where they
    belong, even if a slot occurs twice."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (2, 13, 11, 3), dtype=torch.uint8)
    table = numbers(768, dtype=dtype)
    assert torch.equal(copies.look_up(pixels, table, 3), tower_twins.look_up(pixels, table, 3))
    made = [numbers(5, 3, 20, 16, dtype=dtype) for _ in range(2)]
    expected = [cache.clone() for cache in made]
    states = numbers(2, 18, 96, dtype=dtype)[[0, 1, 1]]
    slots = torch.tensor([4, 2, 2])
    copies.write_cross(states, slots, *made)
    tower_twins.write_cross(states, slots, *expected)
    for mine, theirs in zip(made, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_without_a_residual_equals_its_twin(dtype: torch.dtype) -> None:
    """The norm kernel without a residual, as the stem calls it, equals its reference."""
    product, vectors = numbers(5, 48, dtype=dtype), [numbers(48, dtype=dtype) for _ in range(3)]
    same(norms.add_norm, twins.add_norm, product, vectors[0], None, *vectors[1:], 1e-5)


@pytest.mark.parametrize("kernel", ENCODE_KERNELS, ids=lambda kernel: kernel.name)
def test_each_kernel_passes_the_check_of_the_start(kernel: CudaKernel[EncodeSizes]) -> None:
    """The start-up check passes each kernel, and finds one with another result."""
    torch.manual_seed(0)
    smaller = replace(kernel, small=EncodeSizes(1, 7, 48, 16, 4, 9))
    smaller.check(CPU, torch.float32)
    smaller.check(CPU, torch.bfloat16)
    wrong = replace(smaller, example=lambda *_: disturbed(kernel.example(*_)))
    with pytest.raises(AssertionError, match=f"{kernel.name} differs"):
        wrong.check(CPU, torch.float32)


def test_an_encode_by_the_kernels_is_that_of_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels and the plain modules give the same picture tokens, encoder states, and cached keys and
    values, in float32."""
    for size in (
        "WINDOW_QUERIES",
        "WINDOW_KEYS",
    ):  # larger blocks: fewer steps
        monkeypatch.setattr(tower_attention, size, 256)
    for kernels in (positions, tower_attention):
        monkeypatch.setattr(kernels, "PROGRAMS", 1)
    torch.manual_seed(0)
    make_native(tmp_path)
    model = load_float32(tmp_path, 1100)
    model.lay_out_for_gpu()
    text, language = model.config.text, model.language
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    ids = torch.randint(3, 1000, (2, 6))
    made: list[list[Tensor]] = []
    with torch.inference_mode():
        for backend in (PLAIN, CudaEncode()):
            tokens = model.encode_images(pixels, backend)
            mask = torch.ones(2, tokens.shape[1] + 6, dtype=torch.bool)
            mask[1, -2:] = False
            encoded = run_to_end(language.encode_in_chunks(tokens, ids, mask, backend))
            sizes = CacheSizes(3, 3, tokens.shape[1] + 8, 4)
            caches = Caches(sizes, text.decoder, text.d_model, CPU, torch.float32)
            backend.write_cross_kv(language.decoder, encoded, caches, torch.tensor([2, 0]))
            made.append([tokens, encoded, caches.cross_keys, caches.cross_values])
    for mine, theirs in zip(*made, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
