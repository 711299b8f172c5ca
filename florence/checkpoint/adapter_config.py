"""Reads the settings of a LoRA adapter from the `adapter_config.json` that PEFT writes.

Settings that would change the model other than by a low-rank sum are refused by name. Knows nothing about
tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from florence.checkpoint.files import ADAPTER_CONFIG
from florence.checkpoint.json_values import JsonValues
from florence.errors import quote

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
_MAX_RANK = 2**16

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
    values = JsonValues.of_file(directory / ADAPTER_CONFIG)
    if values.get("peft_type") != "LORA":
        raise values.refused("peft_type", "supported is only 'LORA'")
    for key in _UNSUPPORTED:
        if values.get(key):
            raise values.refused(key, "which is not supported")
    if values.get("init_lora_weights") not in _STARTS:
        raise values.refused(
            "init_lora_weights",
            "which changes the base's weights: convert the adapter to a plain LoRA where it was trained "
            "(peft's path_initial_model_for_weight_conversion)",
        )
    base = values.get("base_model_name_or_path")
    rank_of = partial(JsonValues.integer, maximum=_MAX_RANK)
    return AdapterConfig(
        base=base if isinstance(base, str) else None,
        rank=rank_of(values, "r"),
        alpha=values.number("lora_alpha"),
        rslora=values.flag("use_rslora", False),
        dora=values.flag("use_dora", False),
        rank_pattern=_pattern(values, "rank_pattern", rank_of),
        alpha_pattern=_pattern(values, "alpha_pattern", JsonValues.number),
    )


def _find(pattern: Mapping[str, NumberT], layer: str, default: NumberT) -> NumberT:
    """The value of the first expression that matches the end of a layer's name, as PEFT does; else
    `default`."""
    return next((value for key, value in pattern.items() if re.match(_ends_with(key), layer)), default)


def _ends_with(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _pattern(values: JsonValues, name: str, read: Callable[[JsonValues, str], NumberT]) -> dict[str, NumberT]:
    """The numbers under this name, by their keys, which are regular expressions."""
    if not values.get(name):
        return {}
    section, found = values.section(name), dict[str, NumberT]()
    for key in values.get(name):
        try:
            re.compile(_ends_with(key))
        except (re.error, OverflowError, RecursionError) as error:
            why, _, _ = str(error).partition(" at position")
            raise values.refused(name, f"{quote(key)} is not a regular expression: {why}") from None
        found[key] = read(section, key)
    return found
