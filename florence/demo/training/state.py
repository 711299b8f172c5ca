"""Saves and reads where a training stands, as safetensors: weights, the optimizer's moments, the step.

Knows nothing about what is trained. Files are written under another name and then renamed: a cut run leaves
the last whole state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_MOMENTS = (
    "step",
    "exp_avg",
    "exp_avg_sq",
)  # AdamW counts the steps of each tensor: some are left out at first


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
        step = int(file.metadata()["step"])
        stored = set(file.keys())
        for name, parameter in named_parameters(modules).items():
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
            if f"exp_avg.{name}" in stored:
                optimizer.state[parameter] = {
                    moment: _as_laid_out(file.get_tensor(f"{moment}.{name}"), parameter)
                    for moment in _MOMENTS
                }
    return step


def _as_laid_out(stored: Tensor, parameter: nn.Parameter) -> Tensor:
    """A moment with its parameter's strides (channels_last too): fused AdamW walks both in memory order."""
    if stored.ndim == 0:
        return stored
    return torch.empty_like(parameter, requires_grad=False).copy_(stored)


def load_weights(path: Path, model: nn.Module) -> None:
    """Puts the weights of `save_weights` back. RuntimeError when they are of another network."""
    stored = load_file(path)
    missing, unexpected = model.load_state_dict(stored, strict=False)
    shared = {tensor.data_ptr() for name, tensor in model.state_dict().items() if name in stored}
    absent = [name for name in missing if model.state_dict()[name].data_ptr() not in shared]
    if absent or unexpected:
        raise RuntimeError(f"another network's weights: {absent} are missing, {unexpected} are unknown")


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes a model's weights as float16, tied ones once (under their first name), for others to load."""
    written: dict[int, str] = {}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in written:
            written[tensor.data_ptr()] = name
            tensors[name] = tensor.detach().to("cpu", torch.float16).contiguous()
    _save(path, tensors, {"format": "pt"})


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata)
    unfinished.replace(path)
