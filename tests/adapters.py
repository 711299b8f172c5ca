"""LoRA adapters with random weights, written by peft, and peft's own results with them."""

from __future__ import annotations

import copy
import random
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration

WEIGHTS = "adapter_model.safetensors"
LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "qkv", "lm_head", "image_projection")
ROBOFLOW = ("q_proj", "o_proj", "k_proj", "v_proj", "linear", "Conv2d", "lm_head", "fc2")
"""The default target layers of maestro and of the largest training platform."""

# Replacements, applied in order, that turn transformers' names into those of Microsoft's modules.
_TO_ORIGINAL = (
    (r"\bmodel\.language_model\.", "language_model.model."),
    (r"\.lm_head\.", ".language_model.lm_head."),
    (r"\bmodel\.vision_tower\.", "vision_tower."),
    (r"\bmodel\.multi_modal_projector\.", ""),
    (r"\.convs\.(\d)\.conv\.", r".convs.\1.proj."),
    (r"\.(window_attn|channel_attn)\.", r".\1.fn."),
    (r"\.ffn\.fc", ".ffn.fn.net.fc"),
)


def random_config(seed: int) -> LoraConfig:
    """Draw a LoRA configuration with random settings."""
    rng = random.Random(seed)
    targets = rng.sample([*LINEAR, "conv"], rng.randint(1, 6))
    pattern = {"decoder.layers.1.self_attn.q_proj": 5, ".*encoder.*fc1": 2} if rng.random() < 0.5 else {}
    return LoraConfig(
        r=rng.randint(1, 6),
        lora_alpha=rng.randint(1, 32),
        use_rslora=rng.random() < 0.5,
        use_dora=rng.random() < 0.4,
        target_modules=targets,
        rank_pattern=pattern,
        alpha_pattern={"fc2": 3, "qkv": 7} if rng.random() < 0.5 else {},
        modules_to_save=["image_proj_norm"] if rng.random() < 0.4 else None,
        bias=rng.choice(["none", "none", "all", "lora_only"]),
    )


def untied(model: Florence2ForConditionalGeneration) -> Florence2ForConditionalGeneration:
    """A copy whose head has a weight of its own, so that peft does not merge into the embedding too."""
    own = copy.deepcopy(model)
    own.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    own.config.tie_word_embeddings = own.config.text_config.tie_word_embeddings = False
    return own


def make_adapter(
    model: Florence2ForConditionalGeneration,
    config: LoraConfig,
    directory: Path,
    seed: int = 0,
    size: float = 0.05,
) -> PeftModel:
    """Save an adapter whose trained tensors have random numbers of this size added; return peft's model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights: `untied` has separated them
        torch.manual_seed(seed)
        adapted = get_peft_model(untied(model), config)
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_magnitude" in name:
                    tensor.mul_(torch.rand_like(tensor) + 0.5)
                elif tensor.requires_grad:
                    tensor.add_(torch.randn_like(tensor) * size)
        adapted.save_pretrained(directory)
    return adapted.eval()


def save_merged(adapted: PeftModel, directory: Path) -> None:
    """Save the checkpoint that peft's own merge makes."""
    merged: Any = adapted.merge_and_unload()
    merged.save_pretrained(directory)


def rename(directory: Path, target: Path, *, original: bool = False, raw: bool = False) -> Path:
    """Copy the adapter with Microsoft's names (`original`), or with the keys of a whole state dict
    (`raw`)."""
    target.mkdir()
    (target / "adapter_config.json").write_bytes((directory / "adapter_config.json").read_bytes())
    tensors = load_file(directory / WEIGHTS)
    for old, new in _TO_ORIGINAL if original else ():
        tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
    if raw:
        tensors = {
            re.sub(r"\.(lora_[AB])\.weight", r".\1.default.weight", name): tensor
            for name, tensor in tensors.items()
        }
    save_file(tensors, target / WEIGHTS)
    return target
