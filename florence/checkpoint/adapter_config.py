"""Reads the settings of a LoRA adapter from the `adapter_config.json` that PEFT writes.

Settings that would change the model other than by a low-rank sum are refused by name. Knows nothing about
tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from florence.checkpoint.files import ADAPTER_CONFIG, read_json
from florence.errors import CheckpointError, quote

# Settings that must be absent, null, false or empty.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Initialisations for training that leave the base's weights unchanged; all others change them.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


NumberT = TypeVar("NumberT", int, float)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Rank and scaling of LoRA's product for each layer; the patterns' keys are regular expressions for the
    end of a layer's name. `base`: the checkpoint that the adapter was trained on, None if the file does not
    say."""

    base: str | None
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, layer: str) -> int:
        """The rank of a layer of this name, in the adapter's own spelling."""
        return _find(self.rank_pattern, layer, self.rank)

    def scale_of(self, layer: str) -> float:
        """The factor of the low-rank product in this layer."""
        rank = self.rank_of(layer)
        alpha = _find(self.alpha_pattern, layer, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read `adapter_config.json`. Raises `CheckpointError` for a missing or malformed file, for a method
    other than LoRA, and for unsupported settings."""
    path = directory / ADAPTER_CONFIG
    values = read_json(path)
    method = values.get("peft_type")
    if method != "LORA":
        raise CheckpointError(f"{path}: peft_type is {quote(method)}, supported is only 'LORA'")
    for key in _UNSUPPORTED:
        if values.get(key):
            raise CheckpointError(f"{path}: {key} is {quote(values[key])}, which is not supported")
    start = values.get("init_lora_weights")
    if start not in _STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {quote(start)}, which changes the base's weights: convert the "
            "adapter to a plain LoRA where it was trained (peft's path_initial_model_for_weight_conversion)"
        )
    base = values.get("base_model_name_or_path")
    return AdapterConfig(
        base=base if isinstance(base, str) else None,
        rank=_rank(path, "r", values.get("r")),
        alpha=_number(path, "lora_alpha", values.get("lora_alpha")),
        rslora=_flag(path, "use_rslora", values),
        dora=_flag(path, "use_dora", values),
        rank_pattern={key: _rank(path, key, value) for key, value in _pattern(path, "rank_pattern", values)},
        alpha_pattern={
            key: _number(path, key, value) for key, value in _pattern(path, "alpha_pattern", values)
        },
    )


def _find(pattern: Mapping[str, NumberT], layer: str, default: NumberT) -> NumberT:
    """The value of the first expression that matches the end of a layer's name, as PEFT does; else
    `default`."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def _rank(path: Path, key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= 2**16:
        raise CheckpointError(f"{path}: {key} is {quote(value)}, expected a positive integer")
    return value


def _number(path: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 2**31:
        raise CheckpointError(f"{path}: {key} is {quote(value)}, expected a number")
    return float(value)


def _flag(path: Path, key: str, values: Mapping[str, Any]) -> bool:
    value = values.get(key) or False
    if type(value) is not bool:
        raise CheckpointError(f"{path}: {key} is {quote(value)}, expected true or false")
    return value


def _pattern(path: Path, name: str, values: Mapping[str, Any]) -> list[tuple[str, object]]:
    pattern = values.get(name) or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{path}: {name} is {quote(pattern)}, expected an object")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise CheckpointError(
                f"{path}: {name} has {quote(key)}, which is not a regular expression: {error}"
            ) from None
    return list(pattern.items())
