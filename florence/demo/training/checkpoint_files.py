"""Writes a network and its tokenizer as a checkpoint directory in transformers' native Florence-2 layout.

Knows nothing about how the network was trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import Florence2ForConditionalGeneration

from florence.demo.training.config import Sizes
from florence.demo.training.state import save_weights
from florence.demo.world.tokenizer import save_tokenizer

_STRIDE = 32
# Florence-2's own; transformers keeps them out of a model's config, the original reads them from text_config.
_GENERATION = {
    "num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3, "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}  # fmt: skip


def write_checkpoint(
    directory: Path, model: Florence2ForConditionalGeneration, tokenizer: Tokenizer, sizes: Sizes
) -> None:
    """Writes config, generation config, preprocessor config, tokenizer and float16 weights."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = ["Florence2ForConditionalGeneration"]
    config["dtype"] = "float16"
    config["text_config"] |= _GENERATION
    generation = _GENERATION | {
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "max_length": 1025,
    }  # fmt: skip
    _write(directory / "config.json", config)
    _write(directory / "generation_config.json", generation)
    _write(directory / "preprocessor_config.json", _preprocessor(sizes.side))
    save_tokenizer(tokenizer, directory)
    save_weights(directory / "model.safetensors", model)


def _preprocessor(side: int) -> dict[str, Any]:
    square = {"height": side, "width": side}
    return {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "do_center_crop": False,
        "image_processor_type": "CLIPImageProcessor", "image_seq_length": (side // _STRIDE) ** 2 + 1,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        "processor_class": "Florence2Processor", "resample": 3, "size": square, "crop_size": square,
    }  # fmt: skip


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
