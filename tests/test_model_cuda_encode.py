"""The Triton kernels of an encode, without a GPU: they compile for the supported cards, and an encode
launches few kernels."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="PyTorch's builds for CPUs have no triton")

import torch
from cuda_compile import compiling
from torch import Tensor

from florence.model.kernels.cuda import copies, gelu, norms, positions, tower_attention

STAGES = {"large": (256, 512, 1024, 2048), "base": (128, 256, 512, 1024), "odd": (96,)}
HEAD_DIM, WINDOW, KIB = 32, 12, 1024

HALF = torch.bfloat16, torch.float16
ALL = [
    (90, torch.bfloat16, "odd"),
    *(
        pytest.param(capability, dtype, size, marks=pytest.mark.slow)
        for row, capability in enumerate((90, 89, 80))
        for column, dtype in enumerate((*HALF, torch.float32))
        for size in ["large" if row == column else "odd"]  # the large size once for each card and dtype
    ),
]


def launch_all(dtype: torch.dtype, dims: tuple[int, ...]) -> None:
    """Launch each kernel with cells of each stage, and products with many and few rows."""

    def states(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    for dim in dims:
        vectors = [states(dim) for _ in range(4)]
        positions.position_norm(states(2, 24, 24, dim), states(9, dim), *vectors, 1e-5)
        qkv, heads = states(2, 24, 24, 3 * dim), dim // HEAD_DIM
        tower_attention.window_attention(qkv, states(3 * dim), heads, WINDOW)
        tower_attention.channel_mix(qkv, tower_attention.channel_scores(qkv, heads))
        norms.add_norm(states(9, dim), vectors[0], None, *vectors[1:3], 1e-5)
        if gelu.takes(dtype):
            for rows in (gelu.FEW_ROWS, 60):
                gelu.gelu_linear(states(rows, dim), states(4 * dim, dim), states(4 * dim))
    copies.look_up(torch.empty(2, 32, 32, 3, dtype=torch.uint8), states(768), 3)
    caches = [states(4, 16, 640, 64) for _ in range(2)]
    copies.write_cross(states(2, 640, 2048), torch.empty(2, dtype=torch.int64), *caches)


@pytest.mark.parametrize(("capability", "dtype", "size"), ALL)
def test_kernels_compile_and_keep_all_in_registers(capability: int, dtype: torch.dtype, size: str) -> None:
    """For A100, L4 and H100 the kernels compile without local memory, within the card's shared memory, and
    use tensor cores for half-precision products; an H100 uses its own instruction for the large ones."""
    with compiling(capability) as used:
        launch_all(dtype, STAGES[size])
    assert {each.name for each in used} >= {
        *("position_norm_kernel", "window_attention_kernel", "channel_scores_kernel", "channel_mix_kernel"),
        *("look_up_kernel", "write_cross_kernel", "add_norm_kernel"),
    }
    for each in used:
        assert (each.name, each.local) == (each.name, 0)
        is_product = each.name == "gelu_linear_kernel"
        most = {80: 163, 89: 99, 90: 227}[capability] if is_product else 50
        assert each.shared <= most * KIB, each.name
        if dtype in HALF and (is_product or "attention" in each.name or "channel" in each.name):
            assert "mma" in each.ptx, each.name
    products = [each for each in used if each.name == "gelu_linear_kernel"]
    assert len(products) == (2 * len(STAGES[size]) if dtype in HALF else 0)
    assert capability < 90 or all("wgmma" in each.ptx for each in products)


@pytest.mark.parametrize("pictures", [1, 2, 16])
@pytest.mark.parametrize("side", [24, 48, 96, 192])
def test_strips_and_parts_fill_a_card(pictures: int, side: int) -> None:
    """There are as many programs as aimed at, where there are enough cells, and none is without cells."""
    dim = 256 * 192 // side
    rows, columns = positions.strip_of((pictures, side, side, dim))
    strips = pictures * -(-side // rows) * -(-side // columns)
    assert 1 <= rows <= side
    assert strips >= min(positions.PROGRAMS, pictures * side * -(-side // columns)) / 2
    groups, cells = dim // HEAD_DIM, side * side
    parts = tower_attention.parts_for(pictures, groups, cells)
    assert 1 <= parts <= tower_attention.MOST_PARTS
    assert (parts - 1) * tower_attention.CHANNEL_BLOCK < cells
