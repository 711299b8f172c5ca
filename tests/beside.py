"""Adapters kept beside a tiny model, and models with one adapter merged in."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from adapters import LINEAR, ROBOFLOW, make_adapter
from alone import alone
from goldens import imagenet_normalize
from peft import LoraConfig
from tiny import make_native

from florence.checkpoint.adapters_beside import AdapterBase, digest_of_adapter
from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.engine.adapters import EngineAdapter
from florence.engine.device.beams.reference import Hypothesis, TokenRules
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.errors import EngineError
from florence.model.adapters.lowrank import LowRankKernels, StackedAdapters
from florence.model.florence2 import Florence2Model
from florence.model.kernels.plain import product_float32
from florence.model.products import CpuProducts, ProductBackend

VOCAB, SIDE, ROOM = 1100, 64, 12
WHOLE_VECTORS = {"text_config": {"encoder_ffn_dim": 48, "decoder_ffn_dim": 80}}
"""Layer sizes that the project's matrix product kernel supports."""
CONFIGS = {
    "usual": LoraConfig(r=8, lora_alpha=8, use_rslora=True, target_modules=[*ROBOFLOW]),
    "everywhere": LoraConfig(r=3, lora_alpha=7, target_modules=[*LINEAR]),
    "language": LoraConfig(r=17, lora_alpha=32, target_modules=r".*language_model.*(q_proj|v_proj|fc1)"),
    "tower": LoraConfig(r=2, lora_alpha=4, target_modules=["qkv"]),
}


@dataclass(frozen=True, slots=True)
class Sides:
    """`adapters` for `base`, and the `directories` of both. `merged`: the models that `alone` has loaded."""

    base: Path
    directories: Mapping[str, Path]
    adapters: Mapping[str, EngineAdapter]
    merged: dict[str | None, Florence2Model] = field(default_factory=dict)

    def model(self, name: str | None = None, dtype: torch.dtype = torch.float32) -> Florence2Model:
        """The base model, with this adapter merged in if a name is given."""
        merged = None if name is None else (name, self.directories[name])
        config, cpu = read_config(self.base), torch.device("cpu")
        return load_model(self.base, config, imagenet_normalize(), VOCAB, cpu, dtype, merged)

    def alone(self, name: str | None, request: Request, rules: TokenRules) -> Hypothesis:
        """The plain search's result for a request alone, with this adapter merged into the base."""
        if name not in self.merged:
            self.merged[name] = self.model(name)
        return alone(self.merged[name], request, rules)

    def beside(
        self,
        *,
        fixed: bool,
        packed: bool = False,
        dtype: torch.dtype = torch.float32,
        slots: int = 4,
        room: bool = True,
        kernels: LowRankKernels | None = None,
    ) -> Florence2Model:
        """The base model with slots for adapters. `room`: reserve the layers and the rank that the adapters
        need."""
        model = self.model(dtype=dtype)
        products = CpuProducts(dtype) if packed else ProductBackend()
        products.pack(model)
        if fixed:
            model.language.lay_out_for_gpu(product_float32)
            model.adapters = StackedAdapters(model, slots, kernels)
        else:
            model.adapters = products.make_bank(model, slots)
        model.adapters.reserve([each.layers for each in self.adapters.values()] if room else [])
        return model


def base_of(directory: Path, max_rank: int = 64) -> AdapterBase:
    """The base checkpoint's facts against which adapters are read."""
    return AdapterBase(directory, read_config(directory), imagenet_normalize(), VOCAB, max_rank)


def make_sides(directory: Path) -> Sides:
    """A base with random weights, and one adapter, written by peft, for each of `CONFIGS`."""
    native = make_native(directory / "base", **WHOLE_VECTORS)
    base, found, directories = base_of(directory / "base"), {}, {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        directories[name] = directory / name
        make_adapter(native, config, directories[name], seed)
        layers = base.read(name, directories[name])
        sees = any(layer.startswith("vision.") for layer in layers)
        found[name] = EngineAdapter(name, layers, digest_of_adapter(directories[name]) if sees else b"")
    return Sides(directory / "base", directories, found)


def random_request(dice: random.Random, adapter: EngineAdapter | None, max_beams: int = 4) -> Request:
    """A request with one of four pictures, a random prompt and a random number of beams."""
    beams = dice.randint(1, max_beams)
    options = GenerationOptions(beams, dice.randint(2, ROOM), 0, dice.choice([0, 3]), True, 1.0)
    pixels = np.random.default_rng(dice.randrange(4)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    prompt = (0, *(dice.randint(3, 1000) for _ in range(dice.randint(1, 9))), 2)
    return Request(pixels, prompt, options, adapter=adapter)


def run_crowd(
    runner: Runner, requests: Sequence[Request], dice: random.Random, together: int = 3
) -> list[Hypothesis | EngineError]:
    """Run requests in order, each joining as soon as there is room, at most `together` in one encode; return
    their outcomes."""
    waiting, decoding, order = list(requests), list[SequenceState](), list[SequenceState]()
    outcomes: dict[int, Hypothesis | EngineError] = {}
    while waiting or decoding:
        count = min(runner.fits(waiting), dice.randint(0 if decoding else 1, together))
        if count:
            joined, waiting = runner.encode(waiting[:count]), waiting[count:]
            decoding += joined
            order += joined
        for sequence, outcome in runner.step(decoding):
            outcomes[order.index(sequence)] = outcome
            decoding.remove(sequence)
    return [outcomes[index] for index in range(len(requests))]
