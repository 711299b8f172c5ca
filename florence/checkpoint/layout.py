"""Maps names of tensors from `Florence2Model` to the two checkpoint layouts.

The original layout is that of Microsoft's repositories, the native one that of `transformers`. Pure functions
on names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

Layout = Literal["original", "native"]
LAYOUTS: Final[tuple[Layout, ...]] = ("original", "native")

SHARED, HEAD, BIAS = "language.shared.weight", "language.lm_head.weight", "language.final_logits_bias"

PREFIXES: dict[Layout, dict[str, str]] = {
    "original": {
        "language.lm_head.": "language_model.lm_head.",
        "language.final_logits_bias": "language_model.final_logits_bias",
        "language.": "language_model.model.",
        "vision.tower.": "vision_tower.",
        "vision.projector.rows.": "image_pos_embed.row_embeddings.",
        "vision.projector.columns.": "image_pos_embed.column_embeddings.",
        "vision.projector.temporal": "visual_temporal_embed.pos_idx_to_embed",
        "vision.projector.projection.weight": "image_projection",
        "vision.projector.norm.": "image_proj_norm.",
    },
    "native": {
        "language.lm_head.": "lm_head.",
        "language.": "model.language_model.",
        "vision.tower.": "model.vision_tower.",
        "vision.projector.rows.": "model.multi_modal_projector.image_position_embed.row_embeddings.",
        "vision.projector.columns.": "model.multi_modal_projector.image_position_embed.column_embeddings.",
        "vision.projector.temporal": "model.multi_modal_projector.visual_temporal_embed.pos_idx_to_embed",
        "vision.projector.projection.": "model.multi_modal_projector.image_projection.",
        "vision.projector.norm.": "model.multi_modal_projector.image_proj_norm.",
    },
}
# Regular expressions that turn names inside the tower, which are timm's, into the layout's; all are applied
# in order.
TOWER: dict[Layout, tuple[tuple[str, str], ...]] = {
    "original": (
        (r"\.stem\.", r".stages.0.downsample."),
        (r"\.stages\.(\d+)\.downsample\.conv\.", r".convs.\1.proj."),
        (r"\.stages\.(\d+)\.downsample\.", r".convs.\1."),
        (r"\.stages\.(\d+)\.blocks\.(\d+)\.", r".blocks.\1.\2."),
        (r"\.spatial_block\.norm1\.", r".spatial_block.window_attn.norm."),
        (r"\.channel_block\.norm1\.", r".channel_block.channel_attn.norm."),
        (r"\.spatial_block\.attn\.", r".spatial_block.window_attn.fn."),
        (r"\.channel_block\.attn\.", r".channel_block.channel_attn.fn."),
        (r"\.norm2\.", r".ffn.norm."),
        (r"\.mlp\.", r".ffn.fn.net."),
        (r"\.cpe(\d)\.proj\.", r".conv\1.fn.dw."),
    ),
    "native": (
        (r"\.stem\.", r".stages.0.downsample."),
        (r"\.stages\.(\d+)\.downsample\.", r".convs.\1."),
        (r"\.stages\.(\d+)\.blocks\.(\d+)\.", r".blocks.\1.\2."),
        (r"\.spatial_block\.attn\.", r".spatial_block.window_attn."),
        (r"\.channel_block\.attn\.", r".channel_block.channel_attn."),
        (r"\.mlp\.", r".ffn."),
        (r"\.cpe(\d)\.proj\.", r".conv\1."),
    ),
}


# Name parts that torch.compile, DDP, FSDP, activation checkpointing and PEFT add to what they wrap.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    r"|^base_model\.model\."
)


def unwrapped(name: str) -> str:
    """A tensor's name without the parts added by wrappers around the model or its modules."""
    while (shorter := _WRAPPERS.sub("", name)) != name:
        name = shorter
    return name


def find_layout(names: Iterable[str]) -> Layout | None:
    """The layout of a file with these tensors; None if it is not Florence-2. The tower's first convolution
    tells."""
    present, telltale = set(names), "vision.tower.stem.conv.weight"
    return next((layout for layout in LAYOUTS if checkpoint_name(telltale, layout) in present), None)


def checkpoint_name(name: str, layout: Layout) -> str:
    """The name of the model's tensor `name` in a checkpoint of this layout."""
    prefixes = PREFIXES[layout]
    prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len)
    renamed = prefixes[prefix] + name.removeprefix(prefix)
    if prefix == "vision.tower.":
        for pattern, replacement in TOWER[layout]:
            renamed = re.sub(pattern, replacement, renamed)
    return renamed


def shared_aliases(layout: Layout) -> frozenset[str]:
    """Other names of the shared embedding in a file: the encoder's and the decoder's."""
    stem = checkpoint_name("language.", layout)
    return frozenset(f"{stem}{side}.embed_tokens.weight" for side in ("encoder", "decoder"))


def is_transposed(name: str, layout: Layout) -> bool:
    """Whether the layout stores the model's tensor `name` as [in, out]: the original's projection is used as
    `x @ W`."""
    return layout == "original" and name == "vision.projector.projection.weight"
