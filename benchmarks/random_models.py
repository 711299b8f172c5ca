"""Florence-2 with random weights at real sizes, as transformers' own class and as this package's model.

Nothing is downloaded: sizes are those of Microsoft's checkpoints, and values come from a seed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.engine.config import EncodeStreamChoice, EngineConfig
from florence.engine.device.backend import Backend, products_for
from florence.engine.device.beams.reference import TokenRules
from florence.engine.request import Request
from florence.model.florence2 import Florence2Model
from florence.model.quantized import multiply_in_fp8, multiply_in_int8
from florence.model.vision import Normalize

SIZES = {  # d_model, layers, heads, ffn_dim, tower dimensions
    "large": (1024, 12, 16, 4096, (256, 512, 1024, 2048)),
    "base": (768, 6, 12, 3072, (128, 256, 512, 1024)),
    "small": (512, 6, 8, 2048, (96, 192, 384, 768)),
    "tiny": (64, 2, 4, 128, (16, 16, 32, 64)),
}
VOCAB = 51_289
SIDE = {"large": 768, "base": 768, "small": 384, "tiny": 64}
"""Height and width of a picture, pixels."""

RULES = TokenRules(start_id=2, eos_id=2, forced_bos_id=0, forced_eos_id=2)
MEAN, STD, RESCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255

GAINS = {"q_proj": 2.0, "k_proj": 2.0, "out_proj": 0.3, "fc1": 0.7, "fc2": 0.7}
"""Factors of the spread of weights in `decide`; others have 1.5. All are divided by sqrt(inputs)."""


def picture_tokens(size: str) -> int:
    """The number of tokens of a picture."""
    return 1 + (SIDE[size] // 32) ** 2


def native_config(size: str, vocab: int = VOCAB) -> Florence2Config:
    """transformers' configuration of a model of this size."""
    d_model, layers, heads, ffn_dim, dims = SIZES[size]
    sides = ("encoder", "decoder")
    text = {"model_type": "bart", "vocab_size": vocab, "d_model": d_model, "max_position_embeddings": 1024}
    text |= {f"{side}_layers": layers for side in sides}
    text |= {f"{side}_attention_heads": heads for side in sides}
    text |= {f"{side}_ffn_dim": ffn_dim for side in sides}
    text |= {"num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True}
    groups = [dim // 16 if size == "tiny" else dim // 32 for dim in dims]
    window = 4 if size == "tiny" else 12
    vision = {"embed_dim": dims, "num_heads": groups, "num_groups": groups, "projection_dim": d_model}
    return Florence2Config(
        text_config=text, vision_config=vision | {"window_size": window}, image_token_id=vocab - 1
    )


def make_native(
    size: str, dtype: torch.dtype, seed: int = 0, vocab: int = VOCAB
) -> Florence2ForConditionalGeneration:
    """transformers' model with random weights, on the CPU."""
    config = native_config(size, vocab)
    torch.manual_seed(seed)
    return Florence2ForConditionalGeneration(config).to(dtype).eval()


def convert(
    native: Florence2ForConditionalGeneration, device: torch.device, dtype: torch.dtype
) -> Florence2Model:
    """This package's model with the same weights, loaded by its own code."""
    with tempfile.TemporaryDirectory() as folder:
        native.save_pretrained(folder)
        return load_saved(Path(folder), device, dtype)


def load_saved(
    folder: Path, device: torch.device, dtype: torch.dtype, quantized: Literal["", "fp8", "int8"] = ""
) -> Florence2Model:
    """This package's model of weights that transformers has saved, or that model quantized; a CPU
    emulates fp8."""
    config, normalize = read_config(folder), Normalize(MEAN, STD, RESCALE)
    model = load_model(folder, config, normalize, VOCAB, device, dtype)
    products = products_for(device, dtype)
    if quantized == "fp8":
        multiply_in_fp8(model, products.fp8())
    if quantized == "int8":
        multiply_in_int8(model)
    products.pack(model)
    return model


def native_inputs(
    asked: Sequence[Request], device: torch.device, dtype: torch.dtype = torch.float32, image: int = VOCAB - 1
) -> dict[str, Any]:
    """Arguments of transformers' `generate`: pixels are uploaded as bytes and normalised there, as here.
    `image`: the token that stands for the picture's."""
    pixels = torch.from_numpy(np.stack([request.pixels for request in asked])).to(device)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    marks = [image] * (1 + (pixels.shape[1] // 32) ** 2)
    ids = torch.tensor([[*marks, *request.prompt_ids] for request in asked], device=device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": ((pixels.permute(0, 3, 1, 2) * RESCALE - mean) / std).to(dtype),
    }


def backend_of(model: Florence2Model, encode_stream: EncodeStreamChoice = "off") -> Backend:
    """The backend that the service would choose for this model, with this setting for encodes."""
    sizes, config = model.config, EngineConfig(encode_stream=encode_stream)
    return Backend.for_device(model.device, model.dtype, sizes.text.decoder_head_dim, sizes.vision, config)


@torch.no_grad()
def decide(native: Florence2ForConditionalGeneration, seed: int = 0) -> None:
    """Draw the weights again, so that picture, prompt and earlier tokens determine the next token.

    With widely spread weights alone, each picture has one list of likely tokens, the same at every step:
    attention to everything and strong layers make all states alike. So attention is narrow here, its result
    and the layers are weak, and the head is not tied to the embedding, which would repeat each token. The end
    token's row is three times as long as others, so that it is sometimes the likeliest.
    """
    native.config.tie_word_embeddings = native.config.text_config.tie_word_embeddings = False
    native.lm_head.weight = torch.nn.Parameter(native.lm_head.weight.clone())
    torch.manual_seed(seed)
    for name, tensor in native.named_parameters():
        if tensor.dim() > 1:
            gains = [gain for part, gain in GAINS.items() if "language_model" in name and part in name]
            tensor.normal_(0, (gains or [1.5])[0] * tensor[0].numel() ** -0.5)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.1)
    native.lm_head.weight[RULES.eos_id] *= 3
