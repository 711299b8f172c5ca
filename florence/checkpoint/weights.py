"""Loads a checkpoint's tensors into a `Florence2Model`: safetensors only, every tensor accounted for.

Reads single and sharded files in both layouts (`layout.py`). Knows nothing about hubs, tokenizers or
pictures. Not covered: adapters (LoRA) and quantised tensors, which are refused as unexpected tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from florence.checkpoint.files import WEIGHTS, WEIGHTS_INDEX, missing_weights, weight_files
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
from florence.model.devices import keep_full_precision
from florence.model.florence2 import Florence2Model
from florence.model.vision import Normalize


def load_model(
    directory: Path,
    config: ModelConfig,
    normalize: Normalize,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Florence2Model:
    """The model of `config`, with the weights in the directory's safetensors. On a GPU it sets how this
    process sums products (`keep_full_precision`).

    `vocab_size`: the tokenizer's number of tokens. Rows after these, which native checkpoints add for their
    picture token and as padding, are dropped: the original has none, and they must not take probability.

    Raises `CheckpointError`: one error that names every missing, unexpected or misshapen tensor.
    """
    keep_full_precision(device, dtype)
    with torch.device("meta"), Uninitialized():
        model = Florence2Model(replace(config, text=replace(config.text, vocab_size=vocab_size)), normalize)
    with ExitStack() as files:
        found = dict(_open_tensors(directory, files))
        layout = find_layout(found)
        if layout is None:
            problem = "its safetensors hold no Florence-2, the vision tower is not in them"
            raise CheckpointError(f"{directory}: {problem}")
        sources = _match(directory, config, layout, model.state_dict(), found)
        tensors: dict[str, Tensor] = {}
        for name, (file, source) in sources.items():
            tensor: Tensor = file.get_tensor(source)
            if name in (SHARED, HEAD):
                tensor = tensor[:vocab_size]
            if name == BIAS:
                tensor = tensor[:, :vocab_size]
            tensor = tensor.T if is_transposed(name, layout) else tensor
            # One by one, so that at most one tensor is held in two dtypes.
            tensors[name] = tensor.to(device=device, dtype=dtype).contiguous()
    tensors.setdefault(BIAS, torch.zeros(1, vocab_size, device=device, dtype=dtype))
    if sources[HEAD] == sources[SHARED]:
        tensors[HEAD] = tensors[SHARED]
    model.load_state_dict(tensors, strict=True, assign=True)
    model.language.has_logits_bias = bool(tensors[BIAS].any())
    model.language.tied_head = sources[HEAD] == sources[SHARED]
    model.vision.normalize = normalize.to(device, dtype)
    model.vision.tower = model.vision.tower.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        model.vision.tower.attend_per_picture()
    else:
        model.language.lay_out_for_gpu()
    return model.eval().requires_grad_(False)


def count_parameters(model: Florence2Model) -> int:
    """Number of parameters; tied ones count once."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}.values())


class Uninitialized(TorchFunctionMode):
    """A context in which `torch.nn.init` leaves tensors as they are, since a checkpoint's replace them.

    On the meta device some of its functions would import TorchDynamo, which takes seconds.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else named["tensor"]
        return function(*args, **named)


TensorSource = tuple[Any, str]
"""An open safetensors file and a tensor's name in it."""


def _match(
    directory: Path,
    config: ModelConfig,
    layout: Layout,
    state: Mapping[str, Tensor],
    found: Mapping[str, Any],
) -> dict[str, TensorSource]:
    """Where each of the model's tensors is read from, after a check of all names and shapes."""
    names = {name: checkpoint_name(name, layout) for name in state}
    shapes = _expected_shapes(config, layout, state)
    # Tools that save a checkpoint keep different ones of the tied embedding's names.
    candidates = (names[SHARED], names[HEAD], *shared_aliases(layout))
    shared = next((name for name in candidates if name in found), None)
    # The original uses a head that is in the file; the native class ties it even then.
    tied = names[HEAD] not in found or (layout == "native" and config.text.tied_head)
    if shared is not None:
        names |= {SHARED: shared} | ({HEAD: shared} if tied else {})
    problems = []
    for name, source in names.items():
        if source not in found:
            if name != BIAS:  # native files have none; it is zero in BART
                problems.append(f"{source}: missing, expected {shapes[name]}")
        elif (shape := list(found[source].get_slice(source).get_shape())) != shapes[name]:
            problems.append(f"{source}: expected {shapes[name]}, found {shape}")
    known = {*names.values(), checkpoint_name(HEAD, layout), *shared_aliases(layout)}
    for source in found:
        if source not in known:
            shape = list(found[source].get_slice(source).get_shape())
            problems.append(f"{source}: unexpected, {shape} in the file")
    if problems:
        lines = "\n  ".join(sorted(set(problems)))
        raise CheckpointError(f"{directory}: its tensors do not fit the sizes in config.json:\n  {lines}")
    return {name: (found[source], source) for name, source in names.items() if source in found}


def _expected_shapes(
    config: ModelConfig, layout: Layout, state: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Shapes that the file should have: with all rows of its vocabulary, and transposed as in its layout."""
    shapes = {
        name: list(tensor.shape)[:: -1 if is_transposed(name, layout) else 1]
        for name, tensor in state.items()
    }
    rows = config.text.vocab_size
    return shapes | {name: [rows, config.text.d_model] for name in (SHARED, HEAD)} | {BIAS: [1, rows]}


def _open_tensors(directory: Path, files: ExitStack) -> Iterator[tuple[str, Any]]:
    """Pairs of a tensor's name and the open file that holds it."""
    names = weight_files(directory)
    if not names:
        raise CheckpointError(f"{directory} holds neither {WEIGHTS} nor {WEIGHTS_INDEX}")
    if missing := missing_weights(directory):
        raise CheckpointError(f"{directory} lacks {', '.join(missing)}, which {WEIGHTS_INDEX} names")
    for path in (directory / name for name in names):
        try:
            file = files.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
        for name in file.keys():  # noqa: SIM118  (not a dict: it can't be iterated)
            yield name, file
