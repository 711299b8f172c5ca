"""Sizes and generation settings of a checkpoint, as values. Knows nothing about files or tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STAGES = 4
"""Stages of every DaViT."""

STRIDE = 32
"""Pixels of the picture, in each direction, for one cell of the tower's last stage: 4 * 2 * 2 * 2."""

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Sizes of the DaViT tower (arXiv 2204.03645) and of the projector after it; tuples have one entry for
    each stage."""

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

    @property
    def decoder_head_dim(self) -> int:
        """Dimension of one head of the decoder's attention."""
        return self.d_model // self.decoder.heads


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """A checkpoint's generation settings: the defaults for options that a request leaves out.

    The original calls `language_model.generate`, which reads `text_config` and never its
    `generation_config.json`; native checkpoints keep the same settings in `generation_config.json`. A setting
    that is missing or null has the value of Microsoft's checkpoints, or transformers' default where they have
    none; whether to sample is the request's alone. `early_stopping`: as in
    `engine.request.GenerationOptions`. A forced id of None forces nothing.
    """

    num_beams: int
    no_repeat_ngram_size: int
    early_stopping: bool | Literal["never"]
    length_penalty: float
    forced_bos_id: int | None
    forced_eos_id: int | None
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The contents of a checkpoint's `config.json` and `generation_config.json`."""

    vision: VisionConfig
    text: TextConfig
    generation: GenerationDefaults
