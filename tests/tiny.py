"""Small Florence-2 checkpoints with random weights, made by transformers' native class as an independent
reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration
from transformers.initialization import no_init_weights

SIZES: dict[str, dict[str, Any]] = {
    "vision_config": {
        "embed_dim": [16, 16, 32, 64],
        "num_heads": [1, 2, 2, 4],
        "num_groups": [2, 1, 4, 8],  # different from the numbers of heads
        "depths": [1, 1, 2, 1],
        "window_size": 4,
        "projection_dim": 48,
    },
    "text_config": {
        "model_type": "bart",
        "vocab_size": 1100,
        "d_model": 48,
        "encoder_layers": 1,  # encoder and decoder differ in every size
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 40,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 72,
        "max_position_embeddings": 128,
    },
}


def make_native(
    directory: Path, seed: int = 7, end: float = 1.0, **changes: dict[str, Any]
) -> Florence2ForConditionalGeneration:
    """Save a native checkpoint of `SIZES`, with `changes` to its sections, and return transformers' model of
    it.

    Weights are widely spread, so that a wrong mapping shows and the output is not one token repeated. The end
    token's row is `end` times as long as others: if it is long, sequences end before their limit.
    """
    torch.manual_seed(seed)
    sections = {name: sizes | changes.get(name, {}) for name, sizes in SIZES.items()}
    vocab = sections["text_config"]["vocab_size"]
    config = Florence2Config(**sections, image_token_id=vocab - 1)
    with no_init_weights():  # all weights are drawn below
        model = Florence2ForConditionalGeneration(config).eval()
    model.tie_weights()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(0, 1.5 * tensor[0].numel() ** -0.5)
            elif name.endswith("bias"):
                tensor.normal_(0, 0.1)
            else:  # the weight of a norm
                tensor.fill_(1.0)
        model.get_input_embeddings().weight[2] *= end
    model.save_pretrained(directory)
    return model
