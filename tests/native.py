"""The same network in other libraries: `transformers`' class and `timm`'s tower, with sizes for both."""

from __future__ import annotations

import torch
from timm.models.davit import ChannelAttentionV2, DaVit
from transformers import Florence2ForConditionalGeneration

from florence.engine.device.beams.reference import TokenRules
from florence.model.config import VisionConfig

RULES = TokenRules(start_id=2, eos_id=2, forced_bos_id=0, forced_eos_id=2)

# Florence-2-base with fewer layers of each kind.
BASE = {
    "vision_config": {
        "embed_dim": [128, 256, 512, 1024],
        "num_heads": [4, 8, 16, 32],
        "num_groups": [4, 8, 16, 32],
        "depths": [1, 1, 1, 1],
        "window_size": 12,
        "projection_dim": 768,
    },
    "text_config": {
        "vocab_size": 51289,
        "d_model": 768,
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 12 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 3072 for side in ("encoder", "decoder")},
        "max_position_embeddings": 1024,
    },
}


@torch.inference_mode()
def native_logits(
    native: Florence2ForConditionalGeneration, pixels: torch.Tensor, prompt: list[int], forced: list[int]
) -> torch.Tensor:
    """Teacher-forced logits of transformers' class for pixel values [1, 3, height, width]."""
    picture_tokens = 1 + pixels.shape[-1] // 32 * (pixels.shape[-2] // 32)
    ids = torch.tensor([[native.config.image_token_id] * picture_tokens + prompt])
    output = native(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        decoder_input_ids=torch.tensor([forced]),
    )
    logits: torch.Tensor = output.logits
    return logits


def make_config(window: int = 4, qkv_bias: bool = True) -> VisionConfig:
    """A small tower's configuration."""
    return VisionConfig(
        dims=(16, 32, 32, 64),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 2, 4),
        groups=(2, 1, 4, 8),  # different from the numbers of heads
        window=window,
        mlp_ratio=3.0,
        qkv_bias=qkv_bias,
        max_positions=50,
        max_frames=1,
    )


def make_timm(config: VisionConfig) -> DaVit:
    """timm's tower of the same sizes, with widely spread random weights."""
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
