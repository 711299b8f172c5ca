"""Reads LoRA adapters (arXiv 2106.09685) as PEFT writes them, maps them to a model's tensors, and merges them
into its weights.

Supports rank-stabilised scaling (arXiv 2312.03732), DoRA (arXiv 2402.09353), fully trained layers
(`modules_to_save`), and both key layouts (`layout.py`). An adapter of one layout fits a checkpoint of the
other. Not covered: adapters of the embedding, which encoder, decoder and head share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from florence.checkpoint.adapter_config import AdapterConfig, read_adapter_config
from florence.checkpoint.files import ADAPTER_WEIGHTS, WEIGHTS, check_content
from florence.checkpoint.layout import HEAD, LAYOUTS, SHARED, checkpoint_name, is_transposed, unwrapped
from florence.checkpoint.tokenizer import MAX_SPARE_ROWS
from florence.errors import CheckpointError

BY_TOKEN = (SHARED, HEAD)
"""The tensors with a row for each token."""

_PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.(?!(weight|bias)$)[^.]+)?(\.weight)?"
)
# What PEFT's files have between a layer's name and that of its weight; `[^.]+` is the adapter's name.
_SAVED = re.compile(r"\.(base_layer|modules_to_save(\.(?!weight$|bias$)[^.]+)?)(?=\.(weight|bias)$)")


@dataclass(frozen=True, slots=True)
class LowRank:
    """An adapter's change to a weight [outputs, inputs, ...]: it adds `scale * up @ down`, in float32.

    `down` [rank, inputs, ...], `up` [outputs, rank, ...]. `magnitude` [outputs]: with DoRA, the norm of each
    output's row after the sum; None without DoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None

    def merged(self, weight: Tensor) -> Tensor:
        """The changed weight; `weight` and result are float32."""
        weight = weight + (self.scale * (self.up.flatten(1) @ self.down.flatten(1))).view(weight.shape)
        if self.magnitude is None:
            return weight
        lengths = weight.flatten(1).norm(dim=1)
        factors = (self.magnitude / lengths).view(-1, *[1] * (weight.dim() - 1))
        return weight.mul_(factors)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter for one model. Keys are names of the model's tensors; `whole` replaces tensors, then
    `low_rank` is added. `vocab_size`: tokens of the model; later rows in a file are not changed."""

    name: str
    vocab_size: int
    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]

    def touches(self, name: str) -> bool:
        """Whether the adapter changes the model's tensor `name`."""
        return name in self.low_rank or name in self.whole

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """The model's tensor `name` with the adapter: unchanged if the adapter does not touch it, else in
        float32.

        Raises `CheckpointError` if the adapter has an embedding of its own.
        """
        if name in BY_TOKEN and self.touches(name) and len(tensor) > self.vocab_size:
            tokens, spare = tensor[: self.vocab_size], tensor[self.vocab_size :]
            merged = self.merged(name, tokens)
            return torch.cat([merged, spare.to(merged.dtype)])
        own = self.whole.get(name, tensor)
        if name == SHARED and not torch.equal(own.to(tensor.dtype), tensor):
            raise CheckpointError(
                f"the adapter {self.name} has an embedding of its own; encoder, decoder and head share "
                "theirs, so it can't be placed: merge it where it was trained (peft's merge_and_unload)"
            )
        low_rank = self.low_rank.get(name)
        return own if low_rank is None else low_rank.merged(own.float())


def read_adapter(directory: Path, name: str, shapes: Mapping[str, list[int]]) -> Adapter:
    """The adapter in a directory, for a model whose tensors have these names and shapes.

    Raises `CheckpointError` for an unsupported file or setting, or one that names every tensor that the model
    does not have or whose shape does not fit.
    """
    found = _Found(read_adapter_config(directory), shapes, _places(shapes))
    for key, tensor in _tensors(directory):
        found.take(key, tensor)
    low_rank = {place: found.low_rank(place) for place in sorted(found.parts)}
    if not found.problems and not low_rank:
        found.problems.append("it holds no LoRA tensors")
    if found.problems:
        lines = "\n  ".join(sorted(set(found.problems)))
        raise CheckpointError(f"the adapter {name} does not fit the model:\n  {lines}")
    return Adapter(
        name,
        shapes[HEAD][0],
        {key: value for key, value in low_rank.items() if value is not None},
        found.whole,
    )


@dataclass
class _Found:
    """An adapter's tensors, grouped by the model's tensor that they change, and the problems found."""

    config: AdapterConfig
    shapes: Mapping[str, list[int]]
    places: Mapping[str, str]
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)  # layers' names as the adapter spells them
    whole: dict[str, Tensor] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def take(self, key: str, tensor: Tensor) -> None:
        name = unwrapped(key)
        if ".original_module." in name:  # PEFT's copy of the layer that `modules_to_save` replaces
            return
        part = _PART.fullmatch(name)
        target = f"{part['layer']}.weight" if part else _SAVED.sub("", name)
        place = self.places.get(target)
        if place is None:
            self.problems.append(f"{key}: the model has no such layer")
        elif part:
            kinds = self.parts.setdefault(place, {})
            self.layers[place] = part["layer"]
            self._keep(
                kinds, part["part"], key, tensor if part["part"] == "lora_A" else self._cut(place, tensor)
            )
        elif list((tensor := self._cut(place, tensor)).shape) != self.shapes[place]:
            self.problems.append(f"{key}: expected {self.shapes[place]}, found {list(tensor.shape)}")
        else:
            self._keep(self.whole, place, key, tensor)

    def low_rank(self, place: str) -> LowRank | None:
        """The change of one layer; None if there is a problem."""
        layer, parts, shape = self.layers[place], self.parts[place], self.shapes[place]
        rank = self.config.rank_of(layer)
        expected = {"lora_A": [rank, *shape[1:]], "lora_B": [shape[0], rank, *[1] * (len(shape) - 2)]}
        if self.config.dora:
            expected["lora_magnitude_vector"] = [shape[0]]
        problems = [f"{layer}.{part}: missing" for part in expected if part not in parts]
        for part, tensor in parts.items():
            size = [tensor.numel()] if part == "lora_magnitude_vector" else list(tensor.shape)
            if part not in expected:
                problems.append(f"{layer}.{part}: unexpected, since use_dora is false")
            elif size != expected[part]:
                problems.append(f"{layer}.{part}: expected {expected[part]}, found {size}")
        self.problems += problems
        if problems:
            return None
        magnitude = parts["lora_magnitude_vector"].float().flatten() if self.config.dora else None
        down, up = parts["lora_A"].float(), parts["lora_B"].float()
        return LowRank(down, up, self.config.scale_of(layer), magnitude)

    def _cut(self, place: str, tensor: Tensor) -> Tensor:
        """A tensor with a row for each token, without the padding rows of the checkpoint that it was trained
        on: transformers' layout has some, Microsoft's has none."""
        rows = self.shapes[place][0]
        return tensor[:rows] if place in BY_TOKEN and 0 < len(tensor) - rows <= MAX_SPARE_ROWS else tensor

    def _keep(self, kept: dict[str, Tensor], name: str, key: str, tensor: Tensor) -> None:
        if name in kept and not torch.equal(kept[name], tensor):
            self.problems.append(f"{key}: there is another tensor for the same place")
        kept[name] = tensor


def _places(shapes: Mapping[str, list[int]]) -> dict[str, str]:
    """A tensor's name in either layout -> its name in the model."""
    return {
        checkpoint_name(name, layout): name
        for layout in LAYOUTS
        for name in shapes
        if not is_transposed(name, layout)  # a bare parameter there, which PEFT can't adapt
    }


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the adapter's file, which may have the name of a full model's file."""
    path = directory / ADAPTER_WEIGHTS
    path = path if path.is_file() else directory / WEIGHTS
    with open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118  (not a dict: it can't be iterated)
            yield key, file.get_tensor(key)


def open_safetensors(path: Path) -> Any:
    """An open file of tensors. Raises `CheckpointError` for one that is missing or not complete."""
    check_content(path)
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
