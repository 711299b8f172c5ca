"""Load a checkpoint's directory into a `Florence2Model`: safetensors only, every tensor accounted for.

Reads single and sharded files in both layouts (`layout.py`). Knows nothing about hubs, tokenizers or
pictures. Not covered: adapters (LoRA) and quantised tensors; both are refused as unexpected tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from florence.checkpoint.config import read_config
from florence.checkpoint.layout import (
    BIAS,
    HEAD,
    SHARED,
    Layout,
    checkpoint_name,
    find_layout,
    is_transposed,
    shared_aliases,
)
from florence.errors import CheckpointError
from florence.model.config import ModelConfig
from florence.model.devices import keep_full_float32
from florence.model.florence2 import Florence2Model
from florence.model.uninitialized import Uninitialized
from florence.model.vision import Normalize


def load_model(
    directory: Path, normalize: Normalize, vocab_size: int, device: torch.device, dtype: torch.dtype
) -> Florence2Model:
    """Build the model that `config.json` describes and fill it from the directory's safetensors.

    In float32 on a GPU it turns TF32 off (`keep_full_float32`).
    `vocab_size` is the tokenizer's number of tokens. Rows behind it, which native checkpoints add for their
    picture token and as padding, are left out: the original has none, and they must not take probability.

    Raises `CheckpointError`: one error that names every missing, unexpected or misshapen tensor.
    """
    config = read_config(directory)
    keep_full_float32(device, dtype)
    with torch.device("meta"), Uninitialized():
        model = Florence2Model(replace(config, text=replace(config.text, vocab_size=vocab_size)), normalize)
    with ExitStack() as files:
        found = dict(_open_tensors(directory, files))
        layout = find_layout(found)
        if layout is None:
            raise CheckpointError(
                f"{directory}: its safetensors hold no Florence-2, the vision tower is not in them"
            )
        sources = _match(directory, config, layout, model.state_dict(), found)
        tensors: dict[str, Tensor] = {}
        for name, (file, source) in sources.items():
            tensor: Tensor = file.get_tensor(source)
            if name in (SHARED, HEAD):
                tensor = tensor[:vocab_size]
            if name == BIAS:
                tensor = tensor[:, :vocab_size]
            tensor = tensor.T if is_transposed(name, layout) else tensor
            # One by one, so that the file's dtype never doubles the memory of the whole model.
            tensors[name] = tensor.to(device=device, dtype=dtype).contiguous()
    tensors.setdefault(BIAS, torch.zeros(1, vocab_size, device=device, dtype=dtype))
    if sources[HEAD] == sources[SHARED]:
        tensors[HEAD] = tensors[SHARED]
    model.load_state_dict(tensors, strict=True, assign=True)
    model.language.has_logits_bias = bool(tensors[BIAS].any())
    model.language.tied_head = sources[HEAD] == sources[SHARED]
    model.vision.normalize = normalize.to(device, dtype)
    model.vision.tower = model.vision.tower.to(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)


def count_parameters(model: Florence2Model) -> int:
    """Weights of the model, those that are tied counted once."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}.values())


Source = tuple[Any, str]
"""An open safetensors file and a tensor's name in it."""


def _match(
    directory: Path,
    config: ModelConfig,
    layout: Layout,
    state: Mapping[str, Tensor],
    found: Mapping[str, Any],
) -> dict[str, Source]:
    """Where each of the model's tensors is to be read, after checking all names and shapes at once."""
    names = {name: checkpoint_name(name, layout) for name in state}
    shapes = _expected_shapes(config, layout, state)
    # Whoever saved the file dropped some names of the tied embedding; which ones differs from tool to tool.
    shared = next(
        (name for name in (names[SHARED], names[HEAD], *shared_aliases(layout)) if name in found), None
    )
    # The original uses the head that is in the file; the native class ties it whatever the file says.
    tied = names[HEAD] not in found or (layout == "native" and config.text.tied_head)
    if shared is not None:
        names |= {SHARED: shared} | ({HEAD: shared} if tied else {})
    problems = []
    for name, source in names.items():
        if source not in found:
            if name != BIAS:  # a native file holds none, and one of the original's is zero in BART
                problems.append(f"{source}: missing, expected {shapes[name]}")
        elif (shape := list(found[source].get_slice(source).get_shape())) != shapes[name]:
            problems.append(f"{source}: expected {shapes[name]}, found {shape}")
    known = {*names.values(), checkpoint_name(HEAD, layout), *shared_aliases(layout)}
    for source in found:
        if source not in known:
            problems.append(
                f"{source}: unexpected, {list(found[source].get_slice(source).get_shape())} in the file"
            )
    if problems:
        lines = "\n  ".join(sorted(set(problems)))
        raise CheckpointError(f"{directory}: its tensors do not fit the sizes in config.json:\n  {lines}")
    return {name: (found[source], source) for name, source in names.items() if source in found}


def _expected_shapes(
    config: ModelConfig, layout: Layout, state: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Shapes as the file should hold them: with all its rows of the vocabulary, and transposed where it does
    so."""
    shapes = {
        name: list(tensor.shape)[:: -1 if is_transposed(name, layout) else 1]
        for name, tensor in state.items()
    }
    rows = config.text.vocab_size
    return shapes | {name: [rows, config.text.d_model] for name in (SHARED, HEAD)} | {BIAS: [1, rows]}


def _open_tensors(directory: Path, files: ExitStack) -> Iterator[tuple[str, Any]]:
    """Pairs of a tensor's name and the open file that holds it."""
    for path in _tensor_files(directory):
        try:
            file = files.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
        for name in file.keys():  # noqa: SIM118  (not a dict: it can't be iterated)
            yield name, file


def _tensor_files(directory: Path) -> list[Path]:
    """The single file, or the shards that the index names."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(f"{directory} holds neither {single.name} nor {index.name}")
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}") from error
    for shard in shards:
        if Path(shard).name != shard or not (directory / shard).is_file():
            raise CheckpointError(f"{index} names {shard}, which is not in the directory")
    return [directory / shard for shard in shards]
