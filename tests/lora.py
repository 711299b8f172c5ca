"""LoRA adapters with random numbers for any checkpoint, written without peft."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

USUAL = r"(q_proj|k_proj|v_proj|fc2|lm_head)"


def write_lora(
    checkpoint: Path, target: Path, layers: str = USUAL, *, rank: int = 4, size: float = 0.05, seed: int = 0,
    tasks: list[dict[str, Any]] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """Write an adapter for the linear layers whose names end in the expression `layers`. `tasks`: rows of its
    `florence_tasks.json`."""
    target.mkdir(exist_ok=True)
    dice = torch.Generator().manual_seed(seed)
    tensors = {}
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            layer, shape = name.removesuffix(".weight"), file.get_slice(name).get_shape()
            if len(shape) == 2 and re.search(layers + "$", layer):
                down, up = (
                    torch.randn(*sizes, generator=dice) for sizes in ((rank, shape[1]), (shape[0], rank))
                )
                tensors[f"base_model.model.{layer}.lora_A.weight"] = down * size
                tensors[f"base_model.model.{layer}.lora_B.weight"] = up * size
                if settings.get("use_dora"):
                    tensors[f"base_model.model.{layer}.lora_magnitude_vector"] = torch.ones(shape[0])
    save_file(tensors, target / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, **settings}
    (target / "adapter_config.json").write_text(json.dumps(config))
    if tasks is not None:
        (target / "florence_tasks.json").write_text(json.dumps(tasks))
    return target
