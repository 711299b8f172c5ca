"""Files of a training: where it stands, and the network as a checkpoint in transformers' Florence-2 layout.

A state holds weights, the optimizer's moments and the step. Files of weights are written under another name
and then renamed: a cut run leaves the last whole state. Knows nothing about losses or batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from florence.demo.training.batches import STRIDE
from florence.demo.training.losses import MEAN, STD
from florence.demo.world.tokenizer import save_tokenizer

# AdamW counts the steps of each tensor: some are left out at first.
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")
# Florence-2's own; transformers keeps them out of a model's config, the original reads them from text_config.
_GENERATION: Final = {
    "num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3, "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}  # fmt: skip


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters by `module.name`; tied ones once."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def save_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Writes weights and moments after `step` steps."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_parameters(modules).items():
        tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    _save(path, tensors, {"step": str(step)})


def load_state(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Puts a saved state back and returns its step. RuntimeError when it is of another network."""
    with safe_open(path, "pt") as file:
        stored = set(file.keys())
        for name, parameter in named_parameters(modules).items():
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
            if f"exp_avg.{name}" in stored:
                moments = {moment: file.get_tensor(f"{moment}.{name}") for moment in _MOMENTS}
                for moment in _MOMENTS[1:]:
                    # Strides of the parameter (channels_last too): fused AdamW walks both in memory order.
                    laid_out = torch.empty_like(parameter, requires_grad=False)
                    moments[moment] = laid_out.copy_(moments[moment])
                optimizer.state[parameter] = moments
        return int(file.metadata()["step"])


def write_checkpoint(
    directory: Path, model: Florence2ForConditionalGeneration, tokenizer: Tokenizer, side: int
) -> None:
    """Writes config, generation config, preprocessor config, tokenizer and float16 weights.

    side: of the network's input, in pixels. Tied weights are written once, under their first name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = ["Florence2ForConditionalGeneration"]
    config["dtype"] = "float16"
    config["text_config"] |= _GENERATION
    generation = _GENERATION | {
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "max_length": 1025,
    }  # fmt: skip
    square = {"height": side, "width": side}
    preprocessor = {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "do_center_crop": False,
        "image_processor_type": "CLIPImageProcessor", "image_seq_length": (side // STRIDE) ** 2 + 1,
        "image_mean": MEAN, "image_std": STD,
        "processor_class": "Florence2Processor", "resample": 3, "size": square, "crop_size": square,
    }  # fmt: skip
    files: dict[str, dict[str, Any]] = {
        "config": config, "generation_config": generation, "preprocessor_config": preprocessor,
    }  # fmt: skip
    for name, content in files.items():
        text = json.dumps(content, indent=2, sort_keys=True)
        (directory / f"{name}.json").write_text(text + "\n")
    save_tokenizer(tokenizer, directory)
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        tensors.setdefault(tensor.data_ptr(), (name, tensor.detach().to("cpu", torch.float16).contiguous()))
    _save(directory / "model.safetensors", dict(tensors.values()), {"format": "pt"})


def load_weights(path: Path, model: nn.Module) -> None:
    """Puts a checkpoint's weights back. RuntimeError when they are of another network."""
    stored = load_file(path)
    missing, unexpected = model.load_state_dict(stored, strict=False)
    shared = {tensor.data_ptr() for name, tensor in model.state_dict().items() if name in stored}
    absent = [name for name in missing if model.state_dict()[name].data_ptr() not in shared]
    if absent or unexpected:
        raise RuntimeError(f"another network's weights: {absent} are missing, {unexpected} are unknown")


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata)
    unfinished.replace(path)
