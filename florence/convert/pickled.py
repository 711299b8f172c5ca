"""A program that converts pickled tensors to one safetensors file, in a process of its own.

Its arguments: OUT MEMORY FILE... . The only place that opens a pickle, with
`weights_only=True`, which builds tensors and calls nothing else. It uses at most MEMORY bytes, so that a
small file can't exhaust the machine's memory. Knows nothing about models.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from florence.images.isolated import limit, limit_memory


def main() -> None:
    """Write the tensors of all files into one; if that fails, exit with one line on stderr."""
    atexit.register(gc.freeze)  # or Python's end looks through all that torch has loaded
    out, memory, *files = sys.argv[1:]
    limit_memory(int(memory))
    limit(fsize=int(memory), core=0)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= named_tensors(torch.load(file, map_location="cpu", weights_only=True))
            save_file(plain(tensors), out, {"format": "pt"})
        except Exception as error:  # noqa: BLE001  (torch raises many kinds for a file that it can't read)
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                sys.exit(f"{file} takes more than the {memory} bytes of memory allowed; see --memory-gib")
            sys.exit(f"{file} can't be read as tensors and nothing else: {shortened(error)}")


def named_tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, which may be nested under `state_dict`, `model` or `module` in a trainer's
    file. Raises `ValueError` where there are none."""
    for key in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value.detach() for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"it holds {type(content).__name__} without named tensors")
    return tensors


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors requires them: contiguous, each with its own memory; of several names for
    one tensor (tied weights) only the first is kept."""
    kept: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if same in seen and tensor.numel():
            continue
        alone = storage.data_ptr() not in seen and storage.nbytes() == tensor.nbytes
        kept[name] = tensor if alone and tensor.is_contiguous() else tensor.contiguous().clone()
        seen |= {same, storage.data_ptr()}
    return kept


def shortened(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    return " ".join(str(error).partition(". ")[0].split())[:300] or type(error).__name__
