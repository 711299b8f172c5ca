"""Files of a training: its state, and the network as a checkpoint in transformers' Florence-2 layout.

A state has weights, the optimizer's moments and the step. Weight files are written under another name and
then renamed, so an interrupted run leaves the last complete state. Knows nothing about losses or batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from florence.checkpoint.files import CONFIG, GENERATION_CONFIG, PREPROCESSOR, WEIGHTS
from florence.demo.training.config import TOKEN_IDS
from florence.demo.training.losses import MEAN, STD
from florence.demo.world.tokenizer import save_tokenizer
from florence.model.config import STRIDE

# Florence-2's own; transformers does not put them into a model's config, but the original reads them from
# text_config.
_GENERATION: Final = {
    "num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3,
    "forced_bos_token_id": TOKEN_IDS["bos_token_id"], "forced_eos_token_id": TOKEN_IDS["eos_token_id"],
}  # fmt: skip


def save_state(path: Path, modules: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights and moments after `step` steps."""
    state = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with _replacing(path) as unfinished:
        torch.save(state, unfinished)


def load_state(path: Path, modules: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a saved state and return its step. Raises `RuntimeError` for a state of another network."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    modules.load_state_dict(state["modules"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


def write_checkpoint(
    directory: Path, model: Florence2ForConditionalGeneration, tokenizer: Tokenizer, side: int
) -> None:
    """Write config, generation config, preprocessor config, tokenizer and float16 weights.

    `side`: of the network's input, in pixels. Tied weights are written once, under their first name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = ["Florence2ForConditionalGeneration"]
    config["dtype"] = "float16"
    config["text_config"] |= _GENERATION
    generation = {**_GENERATION, **TOKEN_IDS, "max_length": 1025}
    square = {"height": side, "width": side}
    preprocessor = {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "do_center_crop": False,
        "image_processor_type": "CLIPImageProcessor", "image_seq_length": (side // STRIDE) ** 2 + 1,
        "image_mean": MEAN, "image_std": STD,
        "processor_class": "Florence2Processor", "resample": 3, "size": square, "crop_size": square,
    }  # fmt: skip
    files: dict[str, dict[str, Any]] = {
        CONFIG: config, GENERATION_CONFIG: generation, PREPROCESSOR: preprocessor,
    }  # fmt: skip
    for name, content in files.items():
        text = json.dumps(content, indent=2, sort_keys=True)
        (directory / name).write_text(text + "\n")
    save_tokenizer(tokenizer, directory)
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        tensors.setdefault(tensor.data_ptr(), (name, tensor.detach().to("cpu", torch.float16).contiguous()))
    with _replacing(directory / WEIGHTS) as unfinished:
        save_file(dict(tensors.values()), unfinished, {"format": "pt"})


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file, which is renamed to its own when it is complete."""
    unfinished = path.with_suffix(".unfinished")
    yield unfinished
    unfinished.replace(path)
