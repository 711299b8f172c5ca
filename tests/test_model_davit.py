"""The tower equals timm's `DaVit` with the same weights: an independent check beside the goldens."""

from __future__ import annotations

import pytest
import torch
from native import make_config, make_timm

from florence.model.davit import DaViT
from florence.model.kernels.linear import pack


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize(
    ("size", "window", "qkv_bias"),
    [((128, 128), 4, True), ((96, 160), 4, False), ((64, 32), 3, True)],  # whole windows, and cut ones
)
@torch.inference_mode()
def test_features_are_those_of_timm(
    size: tuple[int, int], window: int, qkv_bias: bool, pictures: int, packed: bool
) -> None:
    """Names, shapes and float32 features are those of timm, packed or not."""
    config = make_config(window, qkv_bias)
    timm_tower, tower = make_timm(config), DaViT(config).eval()
    tower.load_state_dict(timm_tower.state_dict(), strict=True)
    values = torch.randn(pictures, 3, *size)
    expected = timm_tower(values)
    if packed and not pack(tower):
        pytest.skip("this PyTorch or processor packs nothing")
    features = tower(values)
    assert expected.std() > 0.1  # the weights are not trivial
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    """A picture has the same features alone and in a batch."""
    tower = DaViT(make_config()).eval()
    values = torch.randn(3, 3, 96, 64)
    torch.testing.assert_close(tower(values)[1:2], tower(values[1:2]), atol=1e-5, rtol=1e-5)
