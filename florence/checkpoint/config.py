"""Reads the sizes of a Florence-2 model from its `config.json`.

Reads both schemas: that of Microsoft's original repositories and the native one of `transformers`. Settings
that are not supported are refused by name, before a tensor is read. Knows nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from florence.checkpoint.files import CONFIG, GENERATION_CONFIG, read_json
from florence.checkpoint.generation import SettingsSource, read_generation
from florence.errors import CheckpointError, quote
from florence.model.config import ACTIVATIONS, STAGES, ModelConfig, StackConfig, TextConfig, VisionConfig

MOST: Mapping[str, int] = MappingProxyType(
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

MOST_USUALLY = 2**16
"""The same for all other sizes."""


def read_config(directory: Path) -> ModelConfig:
    """Read `config.json` (and `generation_config.json` of a native checkpoint) of a checkpoint's directory.

    Raises `CheckpointError` for a missing or malformed file and for unsupported settings.
    """
    raw = read_json(directory / CONFIG)
    if raw.get("model_type") != "florence2":
        raise CheckpointError(
            f"{directory}: config.json has model_type {quote(raw.get('model_type'))}, expected 'florence2'"
        )
    vision, text = _Section(raw, "vision_config"), _Section(raw, "text_config")
    native = "embed_dim" in vision.values
    tied = _Section({CONFIG: raw}, CONFIG).flag("tie_word_embeddings", True)
    config = ModelConfig(
        vision=_vision_config(vision, native),
        text=_text_config(text, tied),
        generation=read_generation(_generation_sources(directory, text, native), text.integer("vocab_size")),
    )
    projection = vision.integer("projection_dim")
    if projection != config.text.d_model:
        raise CheckpointError(
            f"vision_config.projection_dim is {projection}, but text_config.d_model is {config.text.d_model}"
        )
    return config


def _vision_config(section: _Section, native: bool) -> VisionConfig:
    section.require("patch_size", [7, 3, 3, 3])
    section.require("patch_stride", [4, 2, 2, 2])
    section.require("patch_padding", [3, 1, 1, 1])
    section.require("patch_prenorm", [False, True, True, True])
    section.require("image_feature_source", ["spatial_avg_pool", "temporal_avg_pool"])
    section.require("activation_function", "gelu")
    section.require("in_channels", 3)
    if native:
        positions = section.integer("max_position_embeddings")
        frames = section.integer("max_temporal_embeddings")
    else:
        learned = _Section(section.values, "image_pos_embed")
        cosine = _Section(section.values, "visual_temporal_embedding")
        learned.require("type", "learned_abs_2d")
        cosine.require("type", "COSINE")
        positions, frames = learned.integer("max_pos_embeddings"), cosine.integer("max_temporal_embeddings")
    dims = section.stages("embed_dim" if native else "dim_embed")
    heads, groups = section.stages("num_heads"), section.stages("num_groups")
    for name, counts in (("num_heads", heads), ("num_groups", groups)):
        if any(dim % count for dim, count in zip(dims, counts, strict=True)):
            raise CheckpointError(
                f"vision_config.{name} {list(counts)} does not divide the dimensions {list(dims)}"
            )
    return VisionConfig(
        dims=dims,
        depths=section.stages("depths"),
        heads=heads,
        groups=groups,
        window=section.integer("window_size"),
        mlp_ratio=section.ratio("mlp_ratio", 4.0),
        qkv_bias=section.flag("qkv_bias", True),
        max_positions=positions,
        max_frames=frames,
    )


def _text_config(section: _Section, tied_default: bool) -> TextConfig:
    section.require("normalize_before", False)
    section.require("add_final_layer_norm", False)
    section.require("add_bias_logits", False)
    activation = section.values.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"text_config.activation_function is {quote(activation)}, supported: {', '.join(ACTIVATIONS)}"
        )
    d_model = section.integer("d_model")
    stacks = {
        side: StackConfig(
            layers=section.integer(f"{side}_layers"),
            heads=section.integer(f"{side}_attention_heads"),
            ffn_dim=section.integer(f"{side}_ffn_dim"),
        )
        for side in ("encoder", "decoder")
    }
    for side, stack in stacks.items():
        if d_model % stack.heads:
            raise CheckpointError(
                f"text_config.{side}_attention_heads {stack.heads} does not divide d_model {d_model}"
            )
    return TextConfig(
        vocab_size=section.integer("vocab_size"),
        d_model=d_model,
        max_positions=section.integer("max_position_embeddings"),
        activation=activation,
        scale_embedding=section.flag("scale_embedding", False),
        tied_head=section.flag("tie_word_embeddings", tied_default),
        encoder=stacks["encoder"],
        decoder=stacks["decoder"],
        start_id=section.token_id("decoder_start_token_id", 2),
        bos_id=section.token_id("bos_token_id", 0),
        pad_id=section.token_id("pad_token_id", 1),
        eos_id=section.token_id("eos_token_id", 2),
    )


def _generation_sources(directory: Path, text: _Section, native: bool) -> list[SettingsSource]:
    """Where a checkpoint's generation settings are written; earlier ones have precedence."""
    sources: list[SettingsSource] = [(f"{directory / CONFIG}, {text.name}", text.values)]
    path = directory / GENERATION_CONFIG
    if native and path.is_file():
        sources.append((str(path), read_json(path)))
    return sources


class _Section:
    """One object of `config.json`, with errors that name the section and key."""

    def __init__(self, parent: Mapping[str, Any], name: str) -> None:
        values = parent.get(name)
        if not isinstance(values, dict):
            raise CheckpointError(f"config.json has no object {name!r}")
        self.name = name
        self.values: dict[str, Any] = values

    def integer(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{self.name}.{key} is {quote(value)}, expected a positive integer")
        self._bound(key, value)
        return value

    def _bound(self, key: str, value: float) -> None:
        if value > (most := MOST.get(key, MOST_USUALLY)):
            raise CheckpointError(f"{self.name}.{key} is {quote(value)}, expected at most {most}")

    def token_id(self, key: str, default: int) -> int:
        value, size = self._given(key, default), self.integer("vocab_size")
        if type(value) is not int or not 0 <= value < size:
            raise CheckpointError(
                f"{self.name}.{key} is {quote(value)}, expected a token id from 0 to {size - 1}"
            )
        return value

    def ratio(self, key: str, default: float) -> float:
        value = self._given(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise CheckpointError(f"{self.name}.{key} is {quote(value)}, expected a positive number")
        self._bound(key, value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._given(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.name}.{key} is {quote(value)}, expected true or false")
        return value

    def _given(self, key: str, default: object) -> Any:
        """The value; `default` where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def stages(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key)
        if (
            not isinstance(value, Sequence)
            or len(value) != STAGES
            or any(not isinstance(item, int) or item < 1 for item in value)
        ):
            raise CheckpointError(
                f"{self.name}.{key} is {quote(value)}, expected {STAGES} positive integers, one a stage"
            )
        self._bound(key, max(value))
        return tuple(value)

    def require(self, key: str, supported: object) -> None:
        value = self.values.get(key, supported)
        if value != supported:
            raise CheckpointError(f"{self.name}.{key} is {quote(value)}, supported is only {supported!r}")
