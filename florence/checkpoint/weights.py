"""Loads a checkpoint's tensors into a `Florence2Model`: safetensors only, with a check that no tensor is
missing or left over.

Reads single and sharded files in both layouts (`layout.py`), and merges an adapter on the way. Knows nothing
about hubs, tokenizers or pictures. Not covered: quantised tensors, which are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from florence.checkpoint.adapters import Adapter, open_safetensors, read_adapter
from florence.checkpoint.files import WEIGHTS, weight_files
from florence.checkpoint.foreign import explain_tensors
from florence.checkpoint.layout import (
    BIAS,
    HEAD,
    SHARED,
    Layout,
    checkpoint_name,
    find_layout,
    is_transposed,
    shared_aliases,
    unwrapped,
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
    adapter: AdapterFiles | None = None,
) -> Florence2Model:
    """The model of `config`, with the weights in the directory's safetensors. On a GPU this changes how the
    process sums products (`keep_full_precision`). `adapter`: the name and directory of a LoRA adapter, which
    is merged into the weights in float32, before they are converted to `dtype`.

    `vocab_size`: the tokenizer's number of tokens. Later rows, which native checkpoints add for their picture
    token and as padding, are dropped: the original has none, and they must not get any probability.

    Raises `CheckpointError`: one error that names every missing, unexpected or misshapen tensor.
    """
    keep_full_precision(device, dtype)
    model = outline(config, normalize, vocab_size)
    tensors: dict[str, Tensor] = {}
    with open_weights(directory, config, model.state_dict(), adapter) as weights:
        for name in weights.sources:
            tensor = weights.read(name)
            if name in (SHARED, HEAD):
                tensor = tensor[:vocab_size]
            if name == BIAS:
                tensor = tensor[:, :vocab_size]
            # One by one, so that at most one tensor is in memory in two dtypes.
            tensors[name] = tensor.to(device=device, dtype=dtype).contiguous()
    tensors.setdefault(BIAS, torch.zeros(1, vocab_size, device=device, dtype=dtype))
    if weights.tied:
        tensors[HEAD] = tensors[SHARED]
    model.load_state_dict(tensors, strict=True, assign=True)
    model.language.has_logits_bias = bool(tensors[BIAS].any())
    model.language.tied_head = weights.tied
    model.vision.normalize = normalize.to(device, dtype)
    model.vision.tower = model.vision.tower.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        model.vision.tower.attend_per_picture()
    else:
        model.lay_out_for_gpu()
    return model.eval().requires_grad_(False)


def outline(config: ModelConfig, normalize: Normalize, vocab_size: int) -> Florence2Model:
    """The model on the meta device: names and shapes of its tensors, without memory."""
    with torch.device("meta"), Uninitialized():
        return Florence2Model(replace(config, text=replace(config.text, vocab_size=vocab_size)), normalize)


def count_parameters(model: Florence2Model) -> int:
    """Number of parameters; tied ones count once."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}.values())


class Uninitialized(TorchFunctionMode):
    """A context in which `torch.nn.init` does nothing, since a checkpoint's tensors replace all values.

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

AdapterFiles = tuple[str, Path]
"""An adapter's name and its directory."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The open weights of a checkpoint, checked to be complete. `sources`: names of the model's tensors ->
    where they are read from; `layout`: of the files."""

    layout: Layout
    sources: Mapping[str, TensorSource]
    adapter: Adapter | None

    @property
    def tied(self) -> bool:
        """Whether the head shares the embedding's weight; False if an adapter changes it."""
        changed = self.adapter is not None and self.adapter.touches(HEAD)
        return self.sources[HEAD] == self.sources[SHARED] and not changed

    def read(self, name: str) -> Tensor:
        """The model's tensor, with the adapter merged and all rows of the vocabulary, in the file's dtype, or
        in float32 if the adapter changes it."""
        file, source = self.sources[name]
        tensor: Tensor = file.get_tensor(source)
        if is_transposed(name, self.layout):
            tensor = tensor.T
        return tensor if self.adapter is None else self.adapter.merged(name, tensor)


@contextmanager
def open_weights(
    directory: Path, config: ModelConfig, state: Mapping[str, Tensor], adapter: AdapterFiles | None
) -> Iterator[Weights]:
    """Open the weights of a model whose tensors have the names and shapes of `state`, within the context.
    Raises as `load_model` does."""
    with ExitStack() as files:
        found = _open_tensors(directory, files)
        layout = find_layout(found)
        if layout is None:
            problem = "its safetensors hold no Florence-2, the vision tower is not in them"
            raise CheckpointError(f"{directory}: {problem}")
        sources = _match(directory, config, layout, state, found)
        shapes = {name: list(tensor.shape) for name, tensor in state.items()}
        placed = None if adapter is None else read_adapter(adapter[1], adapter[0], shapes)
        yield Weights(layout, sources, placed)


def _match(
    directory: Path,
    config: ModelConfig,
    layout: Layout,
    state: Mapping[str, Tensor],
    found: Mapping[str, TensorSource],
) -> dict[str, TensorSource]:
    """Where each of the model's tensors is read from. Checks all names and shapes."""
    names = {name: checkpoint_name(name, layout) for name in state}
    shapes = _expected_shapes(config, layout, state)
    # Tools that save a checkpoint keep different names of the tied embedding.
    candidates = (names[SHARED], names[HEAD], *shared_aliases(layout))
    shared = next((name for name in candidates if name in found), None)
    # The original uses the head in the file, if there is one; the native class ties it even then.
    tied = names[HEAD] not in found or (layout == "native" and config.text.tied_head)
    if shared is not None:
        names |= {SHARED: shared} | ({HEAD: shared} if tied else {})
    problems = []
    for name, source in names.items():
        if source not in found:
            if name != BIAS:  # missing in native files; zero in BART
                problems.append(f"{source}: missing, expected {shapes[name]}")
        elif (shape := _shape(found[source])) != shapes[name]:
            problems.append(f"{source}: expected {shapes[name]}, found {shape}")
    known = {*names.values(), checkpoint_name(HEAD, layout), *shared_aliases(layout)}
    problems += [
        f"{source}: unexpected, {_shape(found[source])} in the file"
        for source in found
        if source not in known
    ]
    if problems:
        lines = "\n  ".join(sorted(set(problems)))
        raise CheckpointError(f"{directory}: its tensors do not fit the sizes in config.json:\n  {lines}")
    return {name: found[source] for name, source in names.items() if source in found}


def _shape(source: TensorSource) -> list[int]:
    file, name = source
    return list(file.get_slice(name).get_shape())


def _expected_shapes(
    config: ModelConfig, layout: Layout, state: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """The shapes expected in the file: with all rows of its vocabulary, and transposed as in its layout."""
    shapes = {
        name: list(tensor.shape)[:: -1 if is_transposed(name, layout) else 1]
        for name, tensor in state.items()
    }
    rows, width = config.text.vocab_size, config.text.d_model
    return shapes | {SHARED: [rows, width], HEAD: [rows, width], BIAS: [1, rows]}


def _open_tensors(directory: Path, files: ExitStack) -> dict[str, TensorSource]:
    """The source of each tensor, by its name in an unwrapped model."""
    found: dict[str, TensorSource] = {}
    dtypes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for file_name in weight_files(directory) or [WEIGHTS]:
        file = files.enter_context(open_safetensors(directory / file_name))
        metadata |= file.metadata() or {}
        for name in file.keys():  # noqa: SIM118  (not a dict: it can't be iterated)
            if (short := unwrapped(name)) in found:
                raise CheckpointError(
                    f"{directory}: {name} and {found[short][1]} are the same tensor's names"
                )
            found[short] = (file, name)
            dtypes[name] = file.get_slice(name).get_dtype()
    if words := explain_tensors(directory, dtypes, metadata):
        raise CheckpointError(f"{directory} {words}")
    return found
