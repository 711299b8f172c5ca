"""Merges a LoRA adapter into transformers' model by PEFT itself.

PEFT gets the layers that the adapter names, under the names that it was trained with; the caller says which
of transformers' layers they are. PEFT scales and merges the tensors. Knows nothing about this package's
loader of adapters.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from florence.checkpoint.files import ADAPTER_WEIGHTS, WEIGHTS
from florence.errors import CheckpointError, SettingsError

HEAD: Final = "lm_head"

Translate = Callable[[Collection[str]], Mapping[str, str]]
"""From an adapter's names of layers to the names in transformers' model."""

_PREFIX: Final = "base_model.model."  # PEFT's prefix of each name
_WRAPPERS: Final = re.compile(r"\b(_orig_mod|module)\.")
_RAW: Final = re.compile(
    r"(?<=\.lora_[AB])\.default(?=\.)|(?<=magnitude_vector)\.default|\.modules_to_save(\.default)?"
)
_END: Final = re.compile(r"\.(lora_(A|B|magnitude_vector)|base_layer|weight|bias)(\.|$).*")


def check_peft() -> None:
    """Raise `SettingsError` where PEFT is not installed."""
    if find_spec("peft") is None:
        raise SettingsError(
            "the other side of a checkpoint with an adapter is merged by PEFT, which is not installed: "
            "pip install peft"
        )


def merge_by_peft(model: Any, directory: Path, translate: Translate) -> None:
    """Merge the adapter in a directory into transformers' `model`, in place. Raises `CheckpointError` where
    PEFT does not use all of it."""
    tensors = _read(directory)
    places = translate({_layer_of(name) for name in tensors})
    layers = {name: model.get_submodule(place) for name, place in places.items()}
    head = next((name for name, place in places.items() if place == HEAD), None)
    if head is not None:
        layers[head] = _own_head(model, _rows_of(tensors, head))
    merged = _merge(layers, directory, tensors)
    with torch.no_grad():
        for name, place in places.items():
            for key, found in merged[name].named_parameters():
                kept = model.get_parameter(f"{place}.{key}")
                rows = min(len(kept), len(found))  # of the head: the rows that both have
                kept[:rows] = found[:rows]


def _read(directory: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names in PEFT's file, without the prefix."""
    file = directory / ADAPTER_WEIGHTS
    found = load_file(file if file.is_file() else directory / WEIGHTS)
    named = {
        _RAW.sub("", _WRAPPERS.sub("", name).removeprefix(_PREFIX)): tensor for name, tensor in found.items()
    }
    return {name: tensor for name, tensor in named.items() if ".original_module." not in name}


def _layer_of(name: str) -> str:
    return _END.sub("", name)


def _rows_of(tensors: Mapping[str, Tensor], layer: str) -> int:
    """The number of a layer's outputs in the adapter."""
    ends = (".lora_B.weight", ".weight", ".base_layer.weight")
    return next(len(tensors[layer + end]) for end in ends if layer + end in tensors)


def _own_head(model: Any, rows: int) -> nn.Linear:
    """Untie the head from the embedding, as a copy with `rows` rows: a checkpoint's layout may have padding
    rows."""
    weight = model.lm_head.weight.detach().clone()
    model.lm_head.weight = nn.Parameter(weight, requires_grad=False)
    model.config.tie_word_embeddings = False
    head = nn.Linear(weight.shape[1], rows, bias=False)
    kept = min(rows, len(weight))
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:kept] = weight[:kept]
    return head


def _merge(
    layers: Mapping[str, nn.Module], directory: Path, tensors: Mapping[str, Tensor]
) -> Mapping[str, nn.Module]:
    """The layers with the adapter merged into them, by PEFT. Linear layers are changed in place."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    tree = nn.Module()
    for name, layer in layers.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, nn.Module())
            node = node.get_submodule(parent)
        node.add_module(last, layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that the model is not one of transformers'
        try:
            config = LoraConfig.from_pretrained(str(directory))
            config.task_type, config.init_lora_weights = None, True
            # Use the names of the tensors: the file's may be outdated by a conversion.
            config.target_modules = {_layer_of(name) for name in tensors if ".lora_" in name}
            config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
            adapted = get_peft_model(tree, config)
            named = {_PREFIX + name: tensor for name, tensor in tensors.items()}
            report: Any = set_peft_model_state_dict(adapted, named)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise CheckpointError(f"PEFT can't read the adapter: {error}") from error
        if strange := [*(name for name in report.missing_keys if "lora_" in name), *report.unexpected_keys]:
            raise CheckpointError(
                f"PEFT lacks or does not know these tensors of the adapter: {', '.join(strange)}"
            )
        merged = adapted.merge_and_unload()
    return {name: merged.get_submodule(name) for name in layers}
