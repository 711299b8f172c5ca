"""Reads the sizes of a Florence-2 model from its `config.json`.

Reads both schemas: that of Microsoft's original repositories and the native one of `transformers`. Settings
that are not supported are refused by name, before a tensor is read. Knows nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from florence.checkpoint.files import CONFIG, GENERATION_CONFIG
from florence.checkpoint.generation import read_generation
from florence.checkpoint.json_values import JsonValues
from florence.model.config import ACTIVATIONS, STAGES, ModelConfig, StackConfig, TextConfig, VisionConfig

MAX_SETTINGS: Mapping[str, int] = MappingProxyType(
    {
        "depths": 128,
        "encoder_layers": 128,
        "decoder_layers": 128,
        "mlp_ratio": 64,
        "window_size": 64,
        "vocab_size": 2**20,
    }
)
"""Largest accepted sizes, so that a wrong file is refused before it costs memory or minutes; Florence-2-large
has 12 layers, windows of 12 and 51,289 tokens."""

_MAX_SETTING = 2**16
"""The same for all other sizes."""


def read_config(directory: Path) -> ModelConfig:
    """Read `config.json` (and `generation_config.json` of a native checkpoint) of a checkpoint's directory.

    Raises `CheckpointError` for a missing or malformed file and for unsupported settings.
    """
    values = JsonValues.of_file(directory / CONFIG)
    if values.get("model_type") != "florence2":
        raise values.refused("model_type", "expected 'florence2'")
    vision, text = values.section("vision_config"), values.section("text_config")
    native = vision.get("embed_dim") is not None
    settings, file = text, directory / GENERATION_CONFIG
    if native and file.is_file():
        settings = JsonValues(*text.sources, *JsonValues.of_file(file).sources)
    config = ModelConfig(
        vision=_vision_config(vision, native),
        text=_text_config(text, values.flag("tie_word_embeddings", True)),
        generation=read_generation(settings, _size(text, "vocab_size")),
    )
    if _size(vision, "projection_dim") != config.text.d_model:
        raise vision.refused("projection_dim", f"but text_config.d_model is {config.text.d_model}")
    return config


def _vision_config(values: JsonValues, native: bool) -> VisionConfig:
    values.require("patch_size", [7, 3, 3, 3])
    values.require("patch_stride", [4, 2, 2, 2])
    values.require("patch_padding", [3, 1, 1, 1])
    values.require("patch_prenorm", [False, True, True, True])
    values.require("image_feature_source", ["spatial_avg_pool", "temporal_avg_pool"])
    values.require("activation_function", "gelu")
    values.require("in_channels", 3)
    if native:
        positions = _size(values, "max_position_embeddings")
        frames = _size(values, "max_temporal_embeddings")
    else:
        learned, cosine = values.section("image_pos_embed"), values.section("visual_temporal_embedding")
        learned.require("type", "learned_abs_2d")
        cosine.require("type", "COSINE")
        positions, frames = _size(learned, "max_pos_embeddings"), _size(cosine, "max_temporal_embeddings")
    dims = _stages(values, "embed_dim" if native else "dim_embed")
    heads, groups = _stages(values, "num_heads"), _stages(values, "num_groups")
    for name, counts in (("num_heads", heads), ("num_groups", groups)):
        if any(dim % count for dim, count in zip(dims, counts, strict=True)):
            raise values.refused(name, f"which does not divide the dimensions {list(dims)}")
    return VisionConfig(
        dims=dims,
        depths=_stages(values, "depths"),
        heads=heads,
        groups=groups,
        window=_size(values, "window_size"),
        mlp_ratio=values.number("mlp_ratio", 4.0, minimum=0.01, maximum=MAX_SETTINGS["mlp_ratio"]),
        qkv_bias=values.flag("qkv_bias", True),
        max_positions=positions,
        max_frames=frames,
    )


def _text_config(values: JsonValues, tied_default: bool) -> TextConfig:
    values.require("normalize_before", False)
    values.require("add_final_layer_norm", False)
    values.require("add_bias_logits", False)
    activation = values.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise values.refused("activation_function", f"supported: {', '.join(ACTIVATIONS)}")
    d_model, vocab_size = _size(values, "d_model"), _size(values, "vocab_size")
    token_id = partial(values.integer, minimum=0, maximum=vocab_size - 1, what="a token id")
    stacks = {
        side: StackConfig(
            layers=_size(values, f"{side}_layers"),
            heads=_size(values, f"{side}_attention_heads"),
            ffn_dim=_size(values, f"{side}_ffn_dim"),
        )
        for side in ("encoder", "decoder")
    }
    for side, stack in stacks.items():
        if d_model % stack.heads:
            raise values.refused(f"{side}_attention_heads", f"which does not divide d_model {d_model}")
    return TextConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        max_positions=_size(values, "max_position_embeddings"),
        activation=activation,
        scale_embedding=values.flag("scale_embedding", False),
        tied_head=values.flag("tie_word_embeddings", tied_default),
        encoder=stacks["encoder"],
        decoder=stacks["decoder"],
        start_id=token_id("decoder_start_token_id", 2),
        bos_id=token_id("bos_token_id", 0),
        pad_id=token_id("pad_token_id", 1),
        eos_id=token_id("eos_token_id", 2),
    )


def _size(values: JsonValues, key: str) -> int:
    """A size, up to the largest that is accepted."""
    return values.integer(key, maximum=MAX_SETTINGS.get(key, _MAX_SETTING))


def _stages(values: JsonValues, key: str) -> tuple[int, ...]:
    """A size of each stage."""
    sizes, maximum = values.get(key), MAX_SETTINGS.get(key, _MAX_SETTING)
    if not isinstance(sizes, list) or len(sizes) != STAGES:
        raise values.refused(key, f"expected {STAGES} integers, one a stage")
    if not all(type(size) is int and 1 <= size <= maximum for size in sizes):
        raise values.refused(key, f"expected integers from 1 to {maximum}")
    return tuple(sizes)
