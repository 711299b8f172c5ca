"""The tower is timm's `DaVit` with the same weights: a second witness beside the goldens."""

from __future__ import annotations

import pytest
import torch
from timm.models.davit import ChannelAttentionV2, DaVit

from florence.model.config import VisionConfig
from florence.model.davit import DaViT
from florence.model.kernels.linear import pack


def make_config(window: int = 4, qkv_bias: bool = True) -> VisionConfig:
    return VisionConfig(
        dims=(16, 32, 32, 64),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 2, 4),
        groups=(2, 1, 4, 8),  # other than the heads
        window=window,
        mlp_ratio=3.0,
        qkv_bias=qkv_bias,
        max_positions=50,
        max_frames=1,
    )


def make_timm(config: VisionConfig) -> DaVit:
    """timm's tower of the same sizes, with weights drawn wide."""
    tower = DaVit(
        embed_dims=config.dims,
        depths=config.depths,
        num_heads=config.heads,
        window_size=config.window,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        num_classes=0,
        global_pool="",
        down_kernel_size=3,
        channel_attn_v2=True,
        named_blocks=True,
    )
    for stage, groups in zip(tower.stages, config.groups, strict=True):
        for module in stage.modules():
            if isinstance(module, ChannelAttentionV2):
                module.groups = groups
    tower.head = torch.nn.Identity()
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in tower.parameters():
            scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.3
            tensor.add_(torch.randn_like(tensor) * scale)
    return tower.eval()


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
    """Names, shapes and numbers, in float32 within rounding; packed or not."""
    config = make_config(window, qkv_bias)
    timm_tower, tower = make_timm(config), DaViT(config).eval()
    tower.load_state_dict(timm_tower.state_dict(), strict=True)
    values = torch.randn(pictures, 3, *size)
    expected = timm_tower(values)
    if packed and not pack(tower):
        pytest.skip("this PyTorch or processor packs nothing")
    features = tower(values)
    assert expected.std() > 0.1  # weights that say something
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    tower = DaViT(make_config()).eval()
    values = torch.randn(3, 3, 96, 64)
    torch.testing.assert_close(tower(values)[1:2], tower(values[1:2]), atol=1e-5, rtol=1e-5)
