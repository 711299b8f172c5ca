"""What a checkpoint's files say: sizes and settings. Knows nothing about files or tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STAGES = 4
"""Stages of every DaViT."""

STRIDE = 32
"""Pixels of the picture for one step of the tower's last stage: 4 * 2 * 2 * 2."""

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Sizes of the DaViT tower (arXiv 2204.03645) and of the projector behind it; one entry a stage."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    window: int
    mlp_ratio: float
    qkv_bias: bool
    max_positions: int
    max_frames: int


@dataclass(frozen=True, slots=True)
class StackConfig:
    """Sizes of BART's encoder or of its decoder."""

    layers: int
    heads: int
    ffn_dim: int


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Sizes and token ids of the BART encoder-decoder (arXiv 1910.13461)."""

    vocab_size: int
    d_model: int
    max_positions: int
    activation: str
    scale_embedding: bool
    tied_head: bool
    encoder: StackConfig
    decoder: StackConfig
    start_id: int
    bos_id: int
    pad_id: int
    eos_id: int


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """How a checkpoint wants its beams searched when the caller does not say.

    The original runs `language_model.generate`, so `text_config` rules there and its `generation_config.json`
    is never used; native checkpoints keep the same settings in `generation_config.json`. Where neither
    names one, or it is null, the value of Microsoft's checkpoints holds. `early_stopping`: as
    `engine.GenerationOptions` has it. A forced id of None forces nothing; null says so.
    """

    num_beams: int
    no_repeat_ngram_size: int
    early_stopping: bool | Literal["never"]
    length_penalty: float
    forced_bos_id: int | None
    forced_eos_id: int | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """All that `config.json` and `generation_config.json` say of a checkpoint."""

    vision: VisionConfig
    text: TextConfig
    generation: GenerationDefaults
