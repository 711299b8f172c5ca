"""CPU seconds and wall seconds of encoding pictures, tower and encoder, and their share of the GEMM peak.

    python benchmarks/encode.py [--size large|base|tiny] [--pictures 1] [--dtype bfloat16] [--threads 2]

In one run and in turns: the best matrix product of this machine (plain and packed, several shapes), this
package's model, and transformers' own Florence-2 with the same random weights. Prints medians of the rounds.
The share is the model's FLOP, counted by PyTorch's FLOP counter, divided by what the best product would
compute in that CPU time. The prompt has 13 tokens, so the encoder gets 590.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from command import Cost, cost, medians, parser_of
from random_models import SIDE, SIZES, VOCAB, make_native
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Florence2ForConditionalGeneration

from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.model.devices import keep_freed_memory
from florence.model.florence2 import Florence2Model
from florence.model.kernels.linear import Linear, pack
from florence.model.vision import Normalize

PROMPT_LENGTH = 13
SHAPES = ((2304, 1024, 4096), (576, 2048, 8192), (4096, 4096, 4096))  # rows, inputs, outputs


def products(dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], float]]:
    """Name -> (a matrix product, its FLOP)."""
    found: dict[str, tuple[Callable[[], object], float]] = {}
    for rows, inputs, outputs in SHAPES:
        left, right = torch.randn(rows, inputs).to(dtype), Linear(inputs, outputs, bias=False).to(dtype)
        shape, flop = f"{rows}x{inputs}x{outputs}", 2.0 * rows * inputs * outputs
        found[f"plain {shape}"] = partial(right, left), flop
        packed = copy.deepcopy(right)
        if pack(packed):
            found[f"packed {shape}"] = partial(packed, left), flop
    return found


def count_flop(folder: Path, normalize: Normalize, pixels: Tensor, prompts: Tensor) -> int:
    """FLOP of the tower and the encoder, without computing anything."""
    with torch.device("meta"):
        model = Florence2Model(read_config(folder), normalize)
    model.vision.normalize = Normalize((0.5,) * 3, (0.5,) * 3, 1 / 255).to("meta")
    with FlopCounterMode(display=False) as counter:
        model.encode(model.encode_images(pixels.to("meta")), prompts.to("meta"))
    return counter.get_total_flops()


def encode_natively(native: Florence2ForConditionalGeneration, values: Tensor, prompts: Tensor) -> Tensor:
    """The encode that `generate` runs before its first step."""
    language = native.model.language_model
    features = native.model.get_image_features(pixel_values=values).pooler_output
    embeddings = torch.cat([features, language.get_input_embeddings()(prompts)], dim=1)
    states: Tensor = language.encoder(inputs_embeds=embeddings).last_hidden_state
    return states


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    native = make_native(arguments.size, dtype)
    side = SIDE[arguments.size]
    pixels = torch.randint(0, 256, (arguments.pictures, side, side, 3), dtype=torch.uint8)
    prompts = torch.randint(4, VOCAB, (arguments.pictures, PROMPT_LENGTH))
    normalize = Normalize((0.5,) * 3, (0.5,) * 3, 1 / 255)
    with tempfile.TemporaryDirectory() as folder:
        native.save_pretrained(folder)
        flop = count_flop(Path(folder), normalize, pixels, prompts)
        model = load_model(
            Path(folder), read_config(Path(folder)), normalize, VOCAB, torch.device("cpu"), dtype
        )
    packed = pack(model)
    values = model.vision.normalize(pixels)
    gemms = products(dtype)
    runs: dict[str, Callable[[], object]] = {name: run for name, (run, _) in gemms.items()}
    runs["florence"] = lambda: model.encode(model.encode_images(pixels), prompts)
    runs["transformers"] = lambda: encode_natively(native, values, prompts)
    ours, theirs = (
        model.encode(model.encode_images(pixels), prompts),
        encode_natively(native, values, prompts),
    )
    drift = (ours - theirs).float().abs().mean() / theirs.float().abs().mean()
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            costs[name].append(cost(run))
    typical = {name: medians(found) for name, found in costs.items()}
    rates = {name: flops / typical[name][0] for name, (_, flops) in gemms.items()}
    best = max(rates, key=rates.__getitem__)
    print(
        f"{arguments.size}, {arguments.pictures} pictures of {side}x{side}, {arguments.dtype}, "
        f"packed {packed}, {arguments.threads} threads, medians of {arguments.rounds} rounds; "
        f"the two differ by {drift:.1e}"
    )
    print(f"best product: {best}, {rates[best] / 1e9:.0f} GFLOP per CPU-s; encoding: {flop / 1e9:.0f} GFLOP")
    for name in ("transformers", "florence"):
        cpu, wall = typical[name]
        share = flop / cpu / rates[best]
        print(f"{name:13} {cpu:8.3f} CPU-s  {wall:8.3f} s wall  {share:6.1%} of the best product")
    (cpu, wall), (their_cpu, their_wall) = typical["florence"], typical["transformers"]
    print(f"{'ratio':13} {their_cpu / cpu:8.2f}        {their_wall / wall:8.2f}")


if __name__ == "__main__":
    main()
