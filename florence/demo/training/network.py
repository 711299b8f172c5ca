"""Builds the demo's network: transformers' own Florence-2 class, small, with an initialisation that learns to
use the picture.

With the library's initialisation (normal, 0.02) this network never uses the picture. So matrices are scaled
by their fan-in, and the embeddings of locations and picture positions are smooth, so that near ones are
similar. Also has the plain head that trains the tower first; it is not saved with the checkpoint. Knows
nothing about scenes or data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence.demo.training.config import TOKEN_IDS, Sizes
from florence.demo.world.shapes import MAX_CORNERS
from florence.demo.world.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, TONES, WORDS
from florence.types.regions import BINS


def make_config(sizes: Sizes, vocab_size: int) -> Florence2Config:
    """The config of the network. `<image>` is the last token."""
    text: dict[str, Any] = {
        "model_type": "bart", "vocab_size": vocab_size, "d_model": sizes.width,
        "encoder_layers": sizes.encoder_layers, "decoder_layers": sizes.decoder_layers,
        "encoder_attention_heads": sizes.text_heads, "decoder_attention_heads": sizes.text_heads,
        "encoder_ffn_dim": 4 * sizes.width, "decoder_ffn_dim": 4 * sizes.width,
        "max_position_embeddings": 1024,
        "activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True,
        "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
        **TOKEN_IDS,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "embed_dim": list(sizes.dims), "num_heads": list(sizes.heads), "num_groups": list(sizes.heads),
        "depths": list(sizes.depths), "window_size": sizes.window, "projection_dim": sizes.width,
        "drop_path_rate": 0.0, "max_position_embeddings": 50,
    }  # fmt: skip
    shared = {name: text[name] for name in text if name.startswith("tie_") or name.endswith("_token_id")}
    return Florence2Config(text_config=text, vision_config=vision, image_token_id=vocab_size - 1, **shared)


def make_network(
    config: Florence2Config, first_location: int, seed: int
) -> Florence2ForConditionalGeneration:
    """The initialised network; equal seeds give equal networks. `first_location`: the id of <loc_0>."""
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(config)
    model.tie_weights()
    _draw_weights(model)
    with torch.no_grad():
        shared = model.model.language_model.shared.weight
        shared[first_location : first_location + BINS] = _waves(
            torch.linspace(0, 1, BINS), shared.shape[1], 0.25, 40.0
        )
        places = model.model.multi_modal_projector.image_position_embed
        for table in (places.row_embeddings.weight, places.column_embeddings.weight):
            steps = torch.arange(table.shape[0], dtype=torch.float32)
            table.copy_(_waves(steps, table.shape[1], 1 / 24, 0.5) * math.sqrt(table.shape[1]))
    model.model.vision_tower.to(memory_format=torch.channels_last)
    return model


def _draw_weights(model: nn.Module) -> None:
    """Matrices and kernels by fan-in, biases zero, embedding rows of length one (positions: 0.3)."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.embedding_dim))
        language = model.get_submodule("model.language_model")
        for side in ("encoder", "decoder"):
            positions = language.get_parameter(f"{side}.embed_positions.weight")
            nn.init.normal_(positions, std=0.3 / math.sqrt(positions.shape[1]))


def _waves(at: Tensor, width: int, slowest: float, fastest: float) -> Tensor:
    """[N, width] sines and cosines at geometric frequencies (cycles per unit of `at`), with rows of norm
    one."""
    rates = slowest * (fastest / slowest) ** torch.linspace(0, 1, width // 2)
    angles = 2 * math.pi * at[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(width // 2)


class PlainHead(nn.Module):
    """Predicts the thing at each picture token (presence, shape, colour, size, word, box, outline), and the
    background from the first token, the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.counts = (1, len(SHAPES) + 1, len(COLOURS), len(SIZES) + 1, len(WORDS))
        self.names = nn.Linear(width, sum(self.counts))
        self.box = nn.Linear(width, 4 * width)
        self.outline = nn.Linear(width, 2 * MAX_CORNERS * width)
        self.ground = nn.Linear(width, len(TONES) + len(TEXTURES))
        for layer in (self.names, self.box, self.outline, self.ground):
            nn.init.normal_(layer.weight, std=1.0 / math.sqrt(width))
            nn.init.zeros_(layer.bias)

    def forward(self, cells: Tensor) -> tuple[Tensor, ...]:
        """cells [N, width] -> logits of presence [N, 1], shape, colour, size and word [N, each]."""
        return tuple(self.names(cells).split(self.counts, dim=1))

    def ground_logits(self, means: Tensor) -> tuple[Tensor, ...]:
        """means [B, width] -> logits of tone [B, 2] and texture [B, 7] of the background."""
        return tuple(self.ground(means).split((len(TONES), len(TEXTURES)), dim=1))

    def location_logits(self, cells: Tensor, locations: Tensor) -> tuple[Tensor, Tensor]:
        """cells [N, width], locations [1000, width], their embeddings -> of the box [N, 4, 1000], of up to
        twelve vertices, x and y, [N, 24, 1000]."""
        boxes = self.box(cells).unflatten(1, (4, -1)) @ locations.T
        return boxes, self.outline(cells).unflatten(1, (2 * MAX_CORNERS, -1)) @ locations.T
