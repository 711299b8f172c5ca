"""Explains what a folder contains if it is not a safetensors checkpoint: an adapter, a quantised or converted
model.

Knows the names of files and tensors, and a sentence for each kind; reads no tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

from florence.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, read_json

_TAKE_ORIGINAL = "Take the checkpoint that it was made from, in float32, float16 or bfloat16"
_CONVERT = (
    "pickle can run code, so it is not opened here. `florence convert SOURCE OUT` makes a safetensors "
    "directory of it, in a process of its own; or take the same model as safetensors, such as "
    "mrhendrey/Florence-2-large-ft-safetensors or florence-community/Florence-2-large-ft"
)
_BY_SUFFIX = {  # the first one that matches
    ".bin": f"has its weights as pickle (.bin) only: {_CONVERT}",
    ".pt": f"has its weights as pickle (.pt) only: {_CONVERT}",
    ".pth": f"has its weights as pickle (.pth) only: {_CONVERT}",
    ".ckpt": f"has its weights as pickle (.ckpt) only: {_CONVERT}",
    ".gguf": f"is a GGUF file for llama.cpp, which is not read. {_TAKE_ORIGINAL}",
    ".onnx": f"is an export to ONNX, which is not read. {_TAKE_ORIGINAL}",
    ".npz": f"has its weights as NumPy arrays, as MLX has, which are not read. {_TAKE_ORIGINAL}",
}
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin")
_PACKED = ("U8", "I8", "F8", "F6", "F4")  # prefixes of dtype names that only quantised weights have


def explain_files(directory: Path, names: Collection[str]) -> str | None:
    """The text after a checkpoint's name in an error about missing files; None for an unknown kind of folder.

    `names`: all files with their folders; for a repository not all of them are in `directory`.
    """
    if ADAPTER_CONFIG in names:
        return explain_adapter(directory)
    kept = [name for name in names if PurePath(name).name not in _NOT_WEIGHTS]
    for suffix, words in _BY_SUFFIX.items():
        if any(name.endswith(suffix) for name in kept):
            return words
    return None


def explain_adapter(directory: Path) -> str:
    """The same for an adapter without its base."""
    config = directory / ADAPTER_CONFIG
    base = read_json(config).get("base_model_name_or_path") if config.is_file() else None
    made_for = f" for {base}" if isinstance(base, str) and base else ""
    return (
        f"is a LoRA adapter{made_for}, not a whole checkpoint: set FLORENCE_MODEL to the checkpoint that it "
        "was trained on and FLORENCE_ADAPTER to this one"
    )


def explain_tensors(directory: Path, dtypes: Mapping[str, str], metadata: Mapping[str, str]) -> str | None:
    """The text after a checkpoint's name in an error about safetensors that are not plain weights; None if
    they are.

    `dtypes`: safetensors' dtype name of each tensor. `metadata`: of the file.
    """
    lora = [name for name in dtypes if is_lora(name)]
    if lora and len(lora) == len(dtypes):
        return explain_adapter(directory)
    if lora:
        return (
            f"holds an adapter beside its weights, such as {lora[0]}: merge it where it was trained "
            "(peft's merge_and_unload), or save it alone and set FLORENCE_ADAPTER"
        )
    config = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else {}
    if metadata.get("format") == "mlx" or "quantization" in config:
        return f"is a conversion to MLX, whose tensors have another layout. {_TAKE_ORIGINAL}"
    packed = next((name for name, dtype in dtypes.items() if dtype.startswith(_PACKED)), None)
    if "quantization_config" in config or packed is not None:
        where = "" if packed is None else f" ({packed} is {dtypes[packed]})"
        return (
            f"has weights that are quantised{_method(config)}{where}, which are not read. {_TAKE_ORIGINAL}; "
            "FLORENCE_DTYPE=int8 quantises it at load"
        )
    return None


def is_lora(name: str) -> bool:
    """Whether a tensor is part of an adapter."""
    return any(part.startswith("lora_") for part in name.split("."))


def is_adapter(directory: Path) -> bool:
    """Whether a folder has an adapter in PEFT's format."""
    return (directory / ADAPTER_CONFIG).is_file() and (directory / ADAPTER_WEIGHTS).is_file()


def _method(config: Mapping[str, Any]) -> str:
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return f" by {method}" if isinstance(method, str) else ""
