"""Reads a LoRA adapter that requests select by name: its factors for the model's linear layers, not merged.

Changes that can't be computed beside the weights are refused by name: DoRA, which scales whole rows, fully
trained layers, convolutions, the embedding. A copy of the base's own weight, which PEFT saves with an adapted
head, does not count as a change. Knows files; reads weights of the base only to compare such copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from florence.checkpoint.adapters import Adapter, read_adapter
from florence.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS
from florence.checkpoint.weights import open_weights, outline
from florence.errors import CheckpointError
from florence.model.adapters.lowrank import Factors, linear_layers
from florence.model.config import ModelConfig
from florence.model.vision import Normalize

MERGE_IT = "FLORENCE_ADAPTER can merge it into the weights of a service of its own"


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """The checkpoint that adapters are for: its directory, sizes, and number of tokens. `max_rank`: highest
    rank of an adapter's layer."""

    directory: Path
    config: ModelConfig
    normalize: Normalize
    vocab_size: int
    max_rank: int

    def read(self, name: str, directory: Path) -> dict[str, Factors]:
        """The factors of the adapter in a directory, by the names of the model's linear layers.

        Raises `CheckpointError` as `read_adapter` does, or one that names all changes that can't be computed
        beside the base's weights.
        """
        model = outline(self.config, self.normalize, self.vocab_size)
        state = model.state_dict()
        adapter = read_adapter(directory, name, {key: list(value.shape) for key, value in state.items()})
        layers = {f"{layer}.weight": layer for layer in linear_layers(model)}
        problems = [*self._problems(adapter, layers), *self._changed(adapter, state)]
        if problems:
            lines = "\n  ".join(problems)
            raise CheckpointError(
                f"the adapter {name} can't stand beside other adapters; {MERGE_IT}:\n  {lines}"
            )
        return {
            layers[key]: Factors(part.down, part.scale * part.up) for key, part in adapter.low_rank.items()
        }

    def _problems(self, adapter: Adapter, layers: Container[str]) -> Iterator[str]:
        for key, part in adapter.low_rank.items():
            rank = len(part.down)
            if part.magnitude is not None:
                yield f"{key}: DoRA (use_dora)"
            elif key not in layers:
                yield f"{key}: not a linear layer"
            elif rank > self.max_rank:
                allowed = f"at most {self.max_rank} is allowed (FLORENCE_MAX_ADAPTER_RANK)"
                yield f"{key}: its rank is {rank}; {allowed}"
            elif not (part.down.isfinite().all() and part.up.isfinite().all()):
                yield f"{key}: values that are not finite"

    def _changed(self, adapter: Adapter, state: dict[str, Tensor]) -> Iterator[str]:
        """Names of tensors that replace the base's and differ from them."""
        if not adapter.whole:
            return
        with open_weights(self.directory, self.config, state, None) as weights:
            for key, tensor in adapter.whole.items():
                base = (
                    weights.read(key)[: len(tensor)] if key in weights.sources else torch.zeros_like(tensor)
                )
                if not torch.equal(tensor.to(base.dtype), base):
                    yield f"{key}: trained whole (modules_to_save, or bias)"


def digest_of_adapter(directory: Path) -> bytes:
    """SHA-256 of an adapter's files."""
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS):
        if (directory / name).is_file():
            with (directory / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()
